"""`Account`: the GPU seconds of one engine: how many there were, whose, and which were for nothing.

Knows no clock and no engine, whose turn is the only writer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.capacity.cost_model import CostModel, CostTable, share_by_rows, turn_kind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.scheduling.work import BatchSize, Plan


@dataclass(frozen=True, slots=True)
class GpuTime:
    """GPU time of an image in seconds, as measured; and as the prices of when it came would have
    foretold it for the company that it then had."""

    measured: float = 0.0
    predicted: float = 0.0


class GpuTimeAccount:
    """What turns took, in seconds. `busy` is the sum of what everybody spent; see `cost.shares`."""

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self.wasted_seconds = 0.0  # by images that were cancelled, or that failed
        self._spent: dict[str, GpuTime] = {}  # by those that are here
        self._cost_at_arrival: dict[str, CostTable] = {}  # what prices were then
        self._book = CostModel()

    @property
    def cost_table(self) -> CostTable:
        """What each kind of turn takes: a value, replaced whole."""
        return self._book.table

    def set_batch_sizes(self, batch_sizes: Mapping[ModelKey, BatchSize]) -> None:
        """So many samples of these models step together."""
        self._book.set_batch_sizes(batch_sizes)

    def charge(self, plan: Plan[Any], seconds: float, *, completed: bool) -> None:
        """The samples of a plan have spent these seconds. A turn that was not made `whole` tells
        nothing of the next."""
        first = plan.samples[0]
        kind = turn_kind(plan.work, first, lanes=plan.lanes, load=plan.load)
        self.total_seconds += seconds
        rows = [sample.spec.rows for sample in plan.samples]
        for sample, share in zip(plan.samples, share_by_rows(rows, 1.0), strict=True):
            before = self._spent.get(sample.id, GpuTime())
            then = self._cost_at_arrival.setdefault(sample.id, self.cost_table)
            self._spent[sample.id] = GpuTime(
                before.measured + share * seconds, before.predicted + share * then.seconds(kind)
            )
        if completed:
            self._book.observe(kind, seconds)

    def finish(self, id: str, *, wasted: bool) -> GpuTime:
        """The image is gone, and this was its time; `wasted` when nobody has anything of it."""
        self._cost_at_arrival.pop(id, None)
        spent = self._spent.pop(id, GpuTime())
        self.wasted_seconds += spent.measured * wasted
        return spent
