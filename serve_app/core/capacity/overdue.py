"""When a turn has taken so long that its engine must be hanging. No clock."""

from dataclasses import dataclass
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind, turn_kind
from serve_app.core.errors import EngineFault
from serve_app.core.scheduling.work import Plan, WorkKind

_FACTOR = 10.0  # times the predicted seconds
_SILENT_S = 10.0  # at least, before images continue elsewhere
_OVERDUE_S = 20.0  # at least, before the replica is replaced
_SIMILAR_S = 120.0  # at least, of a kind of turn that was never measured, but others of its model
_UNKNOWN_S = 600.0  # at least, of a load, and before any turn like it was measured: it may compile


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Seconds after which a turn counts as hanging."""

    silent: float  # for its images, which continue elsewhere
    overdue: float  # for its replica, which is replaced

    def __post_init__(self) -> None:
        if not 0 < self.silent <= self.overdue:
            raise ValueError(f"images must leave before their replica is replaced, got {self}")


UNKNOWN_TURN = TurnLimits(_UNKNOWN_S, _UNKNOWN_S)


def turn_limits(turn: TurnKind, costs: CostTable) -> TurnLimits:
    """Return the limits of a turn on the device whose costs these are.

    A measured kind of turn may take ten times as long as predicted. Loads take as long as a disk
    takes, and the first turn of a kind may compile kernels or choose among them.
    """
    if turn.work in (WorkKind.LOAD, WorkKind.ATTACH):
        return UNKNOWN_TURN
    generous = _FACTOR * costs.seconds(turn)
    if turn in costs.seconds_by_turn:
        return TurnLimits(silence_limit(generous / _FACTOR), max(_OVERDUE_S, generous))
    is_similar = any(
        known.work is turn.work and known.model == turn.model for known in costs.seconds_by_turn
    )
    limit = max(_SIMILAR_S if is_similar else _UNKNOWN_S, generous)
    return TurnLimits(limit, limit)


def silence_limit(turn_seconds: float) -> float:
    """Return the seconds without news after which a replica is taken for sick."""
    return max(_SILENT_S, _FACTOR * turn_seconds)


@dataclass(frozen=True, slots=True, eq=False)
class CurrentTurn:
    """The turn that an engine works at; every turn is another one."""

    began: float  # seconds
    limits: TurnLimits

    @classmethod
    def of(cls, plan: Plan[Any], now: float, costs: CostTable) -> "CurrentTurn":
        """Return the turn of a plan that begins now."""
        kind = turn_kind(plan.work, plan.samples[0], lanes=plan.lanes, load=plan.load)
        return cls(now, turn_limits(kind, costs))

    @classmethod
    def unknown(cls, now: float) -> "CurrentTurn":
        """Return something that begins now of which nobody knows how long it takes."""
        return cls(now, UNKNOWN_TURN)

    def is_silent(self, now: float) -> bool:
        """Return whether its images should continue elsewhere."""
        return now - self.began > self.limits.silent

    def check(self, now: float) -> None:
        """Raise `EngineFault` if its replica should be replaced."""
        seconds = now - self.began
        if seconds > self.limits.overdue:
            raise EngineFault(f"a turn has taken {seconds:.0f} s so far")
