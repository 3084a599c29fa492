"""The GPU seconds of one engine: how many there were, of which image, and which were wasted.

No clock and no engine: the engine's turn is the only writer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostModel, CostTable, TurnKind, turn_kind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.scheduling.work import BatchSize, Plan, share_by_rows

_MAX_CALLERS = 64  # whose seconds are kept; those served least recently are forgotten


@dataclass(frozen=True, slots=True)
class GpuTime:
    """GPU seconds of an image: measured, and predicted.

    The prediction uses the cost table from when the image arrived, and the batches in which it
    actually ran.
    """

    measured: float = 0.0
    predicted: float = 0.0


@dataclass(slots=True)
class _Spent:
    """What an image in flight has taken. Its time is only predicted when it has finished."""

    costs: CostTable  # from when it arrived
    seconds: float = 0.0
    turns: dict[TurnKind, float] = field(default_factory=dict)  # its shares of turns of each kind

    def add(self, kind: TurnKind, share: float, seconds: float) -> None:
        """Add a share of a turn of these seconds."""
        self.seconds += share * seconds
        self.turns[kind] = self.turns.get(kind, 0.0) + share

    @property
    def gpu_time(self) -> GpuTime:
        """The time that it took, and the prediction."""
        predicted = sum(self.costs.seconds(kind) * share for kind, share in self.turns.items())
        return GpuTime(self.seconds, predicted)


class GpuTimeAccount:
    """The seconds that turns took, in total and of each image: see `share_by_rows`."""

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self.wasted_seconds = 0.0  # of images that were cancelled or failed
        self.seconds_by_caller: Mapping[Caller, float] = {}  # replaced as a whole
        self._spent: dict[str, _Spent] = {}  # by the id of each image that has not finished
        self._cost_model = CostModel()

    @property
    def cost_table(self) -> CostTable:
        """The seconds of each kind of turn: a value that is replaced as a whole."""
        return self._cost_model.table

    def set_batch_sizes(self, batch_sizes: Mapping[ModelKey, BatchSize]) -> None:
        """Set how many samples of each of these models step together."""
        self._cost_model.set_batch_sizes(batch_sizes)

    def charge(
        self, plan: Plan[Any], seconds: float, *, lanes: int | None = None, is_usual: bool = True
    ) -> None:
        """Charge the seconds of a turn to the samples of its plan.

        Where a step had other `lanes` than planned, such a plan takes as long the next time too.
        The length of an unusual turn, such as one that failed, says nothing about the next one.
        """
        first = plan.samples[0]
        kind = turn_kind(plan.work, first, lanes=plan.lanes, load=plan.load)
        self.total_seconds += seconds
        rows = [sample.rows for sample in plan.samples]
        by_caller = dict(self.seconds_by_caller)
        for sample, share in zip(plan.samples, share_by_rows(rows, 1.0), strict=True):
            spent = self._spent.get(sample.id)
            if spent is None:
                self._spent[sample.id] = spent = _Spent(self.cost_table)
            spent.add(kind, share, seconds)
            by_caller[sample.caller] = by_caller.pop(sample.caller, 0.0) + share * seconds
        for caller in list(by_caller)[:-_MAX_CALLERS]:
            del by_caller[caller]
        self.seconds_by_caller = by_caller
        if is_usual:
            for run in {plan.lanes, plan.lanes if lanes is None else lanes}:
                self._cost_model.observe(replace(kind, rows=run) if run else kind, seconds)

    def finish(self, id: str, *, wasted: bool) -> GpuTime:
        """Forget an image that has left, and return its time; `wasted` if it has no result."""
        spent = self._spent.pop(id, None)
        if spent is None:
            return GpuTime()
        self.wasted_seconds += spent.seconds * wasted
        return spent.gpu_time
