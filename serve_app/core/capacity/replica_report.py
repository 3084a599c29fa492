"""`ReplicaReport`: what a replica has to do, by its own account, and the form in which it travels.

The wire form is made of plain values with names and has a version, so that a process may pass it on
without this package, and a process of another release can tell that it can't read it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind, turn_kind
from serve_app.core.capacity.replica_load import KeyLoad
from serve_app.core.diffusion.keys import BatchKey, ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, step_counts
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind

WIRE_VERSION = 4  # grows with each change of the wire form
Wire = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepCount:
    """How many steps of one kind an image still has to take."""

    count: int
    step: TurnKind  # in a full batch
    alone: TurnKind  # in a batch of its own


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """The steps that an image still has to take on a replica."""

    batch_key: str  # encoded: see `encode_batch_key`
    kinds: tuple[StepCount, ...]
    caller: Caller

    @property
    def steps(self) -> int:
        """How many steps of any kind it has to take."""
        return sum(kind.count for kind in self.kinds)

    def full_seconds(self, costs: CostTable) -> float:
        """Return the seconds of its steps, if all are in full batches."""
        return sum(kind.count * costs.seconds(kind.step) for kind in self.kinds)

    def alone_seconds(self, costs: CostTable) -> float:
        """Return the seconds of its steps in batches of its own."""
        return sum(kind.count * costs.seconds(kind.alone) for kind in self.kinds)

    def load(self, costs: CostTable) -> KeyLoad:
        """Return the load of no image yet whose steps are like its own; free if it has none."""
        steps = max(1, self.steps)
        return KeyLoad(0, 0, self.full_seconds(costs) / steps, self.alone_seconds(costs) / steps)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica has to do, by its own account."""

    number: int  # grows with each report, from 1
    profile: str  # its numeric profile: replicas that share it should be equally fast
    remaining: Mapping[str, RemainingWork]  # by `key_of` each image
    models: tuple[ModelKey, ...]  # in the memory of the device or the host
    costs: CostTable
    measured: Mapping[Caller, float]  # GPU seconds since it started, of its last callers

    @classmethod
    def of(
        cls,
        number: int,
        profile: str,
        pending: Iterable[PendingWork[Any]],
        models: Iterable[ModelKey],
        costs: CostTable,
        measured: Mapping[Caller, float],
    ) -> "ReplicaReport":
        """Return the report of a replica with this pending work."""
        remaining = {
            key_of(work.sample): remaining_work(work.sample, work.segment, costs)
            for work in pending
        }
        return cls(number, profile, remaining, tuple(models), costs, dict(measured))

    def to_wire(self) -> dict[str, Any]:
        """Return the report in plain values; of the costs only those of steps and loads."""
        return {
            "version": WIRE_VERSION,
            "number": self.number,
            "profile": self.profile,
            "images": {
                key: {
                    "batchKey": work.batch_key,
                    "steps": [
                        {
                            "count": kind.count,
                            "step": _turn_to_wire(kind.step),
                            "rowsAlone": kind.alone.rows,
                        }
                        for kind in work.kinds
                    ],
                    "caller": _caller_to_wire(work.caller),
                }
                for key, work in self.remaining.items()
            },
            "models": [_model_to_wire(model) for model in self.models],
            "batchSizes": [
                {
                    "model": _model_to_wire(model),
                    "images": size.images,
                    "laneCounts": list(size.lane_counts),
                }
                for model, size in self.costs.batch_sizes.items()
            ],
            "costs": [
                {"turn": _turn_to_wire(turn), "seconds": seconds}
                for turn, seconds in self.costs.seconds_by_turn.items()
                if turn.work in (WorkKind.STEP, WorkKind.LOAD)
            ],
            "measured": [
                {"caller": _caller_to_wire(caller), "seconds": seconds}
                for caller, seconds in self.measured.items()
            ],
        }

    @classmethod
    def from_wire(cls, wire: Wire) -> "ReplicaReport | None":
        """Return the report, or None if its version is unknown or it can't be read."""
        if wire.get("version") != WIRE_VERSION:
            return None
        try:
            return cls._from_current_version(wire)
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _from_current_version(cls, wire: Wire) -> "ReplicaReport":
        return cls(
            number=wire["number"],
            profile=wire["profile"],
            remaining={key: _work_from_wire(work) for key, work in wire["images"].items()},
            models=tuple(_model_from_wire(model) for model in wire["models"]),
            costs=CostTable(
                {_turn_from_wire(cost["turn"]): cost["seconds"] for cost in wire["costs"]},
                {
                    _model_from_wire(size["model"]): BatchSize(
                        size["images"], tuple(size["laneCounts"])
                    )
                    for size in wire["batchSizes"]
                },
            ),
            measured={
                _caller_from_wire(entry["caller"]): entry["seconds"] for entry in wire["measured"]
            },
        )


def key_of(sample: Sample[Any]) -> str:
    """Return the key of an image at its stage: a replica may run both stages of one image."""
    return f"{sample.id} {sample.stage}"


def encode_batch_key(key: BatchKey) -> str:
    """Return a batch key as text, equal for equal keys in every process."""
    return json.dumps(asdict(key), sort_keys=True)


def remaining_work(sample: Sample[Any], segment: StageSegment, costs: CostTable) -> RemainingWork:
    """Return what is left of a segment, in full batches."""
    size = costs.batch_size(sample.model_key)
    return RemainingWork(
        batch_key=encode_batch_key(sample.usual_batch_key),
        kinds=tuple(
            StepCount(
                count,
                *(
                    turn_kind(
                        WorkKind.STEP,
                        sample,
                        lanes=size.lanes(images * kind.rows),
                        shallow=kind.shallow,
                    )
                    for images in (size.images, 1)
                ),
            )
            for kind, count in step_counts(sample, segment.stop).items()
        ),
        caller=sample.caller,
    )


def _work_from_wire(wire: Wire) -> RemainingWork:
    kinds = []
    for kind in wire["steps"]:
        step = _turn_from_wire(kind["step"])
        kinds.append(StepCount(kind["count"], step, replace(step, rows=kind["rowsAlone"])))
    return RemainingWork(wire["batchKey"], tuple(kinds), _caller_from_wire(wire["caller"]))


def _caller_to_wire(caller: Caller) -> dict[str, Any]:
    return {"name": caller.name, "weight": caller.weight}


def _caller_from_wire(wire: Wire) -> Caller:
    return Caller(wire["name"], wire["weight"])


def _model_to_wire(model: ModelKey) -> dict[str, str | None]:
    return {"stage": str(model.stage), "name": model.name}


def _model_from_wire(wire: Wire) -> ModelKey:
    return ModelKey(Stage(wire["stage"]), wire["name"])


def _turn_to_wire(turn: TurnKind) -> dict[str, Any]:
    """Return the kind of a step or a load; other kinds have fields that do not travel."""
    return {
        "work": str(turn.work),
        "model": _model_to_wire(turn.model),
        "width": turn.width,
        "height": turn.height,
        "rows": turn.rows,
        "extensions": list(turn.extensions),
        "shallow": turn.shallow,
    }


def _turn_from_wire(wire: Wire) -> TurnKind:
    return TurnKind(
        work=WorkKind(wire["work"]),
        model=_model_from_wire(wire["model"]),
        width=wire["width"],
        height=wire["height"],
        rows=wire["rows"],
        extensions=tuple(wire["extensions"]),
        shallow=wire["shallow"],
    )
