"""`IngressLoad`: what one ingress process has accepted, as the other ingress processes need it.

It travels as plain values with a version, so that processes of two releases may run side by side.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts, folded, total
from serve_app.core.diffusion.spec import Stage

WIRE_VERSION = 2
_MAX_CALLERS = 200  # that are named on the wire; of more, those that owe least are one caller


@dataclass(frozen=True, slots=True)
class IngressLoad:
    """The jobs of one or several ingress processes, and what their images will take."""

    jobs: Amounts = field(default_factory=dict)  # numbers
    images: Mapping[Stage, int] = field(default_factory=dict)  # that are not done with the stage
    owed: Mapping[Stage, Amounts] = field(default_factory=dict)  # GPU-seconds
    sent_away: Amounts = field(default_factory=dict)  # seconds; see `VirtualQueue`

    def scaled(self, factor: float) -> "IngressLoad":
        """Return the load of that many processes of the same kind."""
        return IngressLoad(
            _scaled(self.jobs, factor),
            {stage: round(images * factor) for stage, images in self.images.items()},
            {stage: _scaled(owed, factor) for stage, owed in self.owed.items()},
            _scaled(self.sent_away, factor),
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the load in plain values."""
        return {
            "version": WIRE_VERSION,
            "jobs": _to_wire(self.jobs),
            "images": {str(stage): count for stage, count in self.images.items()},
            "owed": {str(stage): _to_wire(owed) for stage, owed in self.owed.items()},
            "sentAway": _to_wire(self.sent_away),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "IngressLoad | None":
        """Return the load, or None if its version is unknown or it can't be read."""
        if wire.get("version") != WIRE_VERSION:
            return None
        try:
            return cls(
                _from_wire(wire["jobs"]),
                {Stage(stage): count for stage, count in wire["images"].items()},
                {Stage(stage): _from_wire(owed) for stage, owed in wire["owed"].items()},
                _from_wire(wire["sentAway"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def sum_of(loads: Iterable[IngressLoad]) -> IngressLoad:
    """Return the load of several ingress processes together."""
    loads = list(loads)
    stages = {stage for load in loads for stage in load.owed}
    return IngressLoad(
        total(*(load.jobs for load in loads)),
        {stage: sum(load.images.get(stage, 0) for load in loads) for stage in stages},
        {stage: total(*(load.owed.get(stage, {}) for load in loads)) for stage in stages},
        total(*(load.sent_away for load in loads)),
    )


def _scaled(amounts: Amounts, factor: float) -> Amounts:
    return {caller: amount * factor for caller, amount in amounts.items()}


def _to_wire(amounts: Amounts) -> list[list[Any]]:
    return [
        [caller.name, caller.weight, amount]
        for caller, amount in folded(amounts, _MAX_CALLERS).items()
    ]


def _from_wire(rows: Iterable[Iterable[Any]]) -> Amounts:
    return {Caller(name, weight): amount for name, weight, amount in rows}
