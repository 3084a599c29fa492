"""`Account`: the GPU seconds of one engine: how many there were, whose, and which were for nothing.

Knows no clock and no engine, whose turn is the only writer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.capacity.cost_model import PriceBook, Prices, shares, turn_of
from serve_app.core.scheduling.step_scheduler import BatchSize, Plan


@dataclass(frozen=True, slots=True)
class Spent:
    """GPU time of an image in seconds, as measured; and as the prices of when it came would have
    foretold it for the company that it then had."""

    seconds: float = 0.0
    foretold: float = 0.0


class Account:
    """What turns took, in seconds. `busy` is the sum of what everybody spent; see `cost.shares`."""

    def __init__(self) -> None:
        self.busy = 0.0
        self.wasted = 0.0  # by images that were cancelled, or that failed
        self._spent: dict[str, Spent] = {}  # by those that are here
        self._came: dict[str, Prices] = {}  # what prices were then
        self._book = PriceBook()

    @property
    def prices(self) -> Prices:
        """What each kind of turn takes: a value, replaced whole."""
        return self._book.prices

    def hold(self, sizes: Mapping[str, BatchSize]) -> None:
        """So many samples of these models step together."""
        self._book.hold(sizes)

    def charge(self, plan: Plan[Any], seconds: float, *, whole: bool) -> None:
        """The samples of a plan have spent these seconds. A turn that was not made `whole` tells
        nothing of the next."""
        first = plan.samples[0]
        kind = turn_of(plan.work, first, lanes=plan.lanes, load=plan.load)
        self.busy += seconds
        rows = [sample.spec.rows for sample in plan.samples]
        for sample, share in zip(plan.samples, shares(rows, 1.0), strict=True):
            before = self._spent.get(sample.id, Spent())
            then = self._came.setdefault(sample.id, self.prices)
            self._spent[sample.id] = Spent(
                before.seconds + share * seconds, before.foretold + share * then.seconds(kind)
            )
        if whole:
            self._book.saw(kind, seconds)

    def leave(self, id: str, *, wasted: bool) -> Spent:
        """The image is gone, and this was its time; `wasted` when nobody has anything of it."""
        self._came.pop(id, None)
        spent = self._spent.pop(id, Spent())
        self.wasted += spent.seconds * wasted
        return spent
