"""`Account`: the GPU seconds of one engine: how many there were, whose, and which were for nothing.

Knows no clock and no engine, whose turn is the only writer.
"""

from collections.abc import Mapping
from typing import Any

from serve_app.core.cost import Meter, Prices, shares, turn_of
from serve_app.core.scheduler import BatchSize, Plan


class Account:
    """What turns took, in seconds. `busy` is the sum of what everybody spent; see `cost.shares`."""

    def __init__(self) -> None:
        self.busy = 0.0
        self.wasted = 0.0  # by images that were cancelled, or that failed
        self._spent: dict[str, float] = {}  # by those that are here
        self._meter = Meter()

    @property
    def prices(self) -> Prices:
        """What each kind of turn takes: a value, replaced whole."""
        return self._meter.prices

    def hold(self, sizes: Mapping[str, BatchSize]) -> None:
        """So many samples of these models step together."""
        self._meter.hold(sizes)

    def charge(self, plan: Plan[Any], seconds: float, *, whole: bool) -> None:
        """The samples of a plan have spent these seconds. A turn that was not made `whole` tells
        nothing of the next."""
        self.busy += seconds
        rows = [sample.spec.rows for sample in plan.samples]
        for sample, share in zip(plan.samples, shares(rows, seconds), strict=True):
            self._spent[sample.id] = self._spent.get(sample.id, 0.0) + share
        if whole:
            first = plan.samples[0]
            kind = turn_of(plan.work, first, lanes=plan.lanes, load=plan.load)
            self._meter.saw(kind, seconds)

    def spent(self, id: str) -> float:
        """Seconds of an image that is here."""
        return self._spent.get(id, 0.0)

    def leave(self, id: str, *, wasted: bool) -> float:
        """The image is gone, and these were its seconds; `wasted` when nobody has anything of
        them."""
        spent = self._spent.pop(id, 0.0)
        self.wasted += spent * wasted
        return spent
