"""`WarmUps`: how far the replicas that start have come with compiling their models. No clock."""

from collections.abc import Callable
from dataclasses import dataclass

_NEWS_WITHIN_S = 1200.0  # after which a replica without news is taken for gone


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How many kinds of step of a model a replica has compiled: sizes, each with numbers of rows.

    Raises `ValueError` if more are done than there are.
    """

    model: str
    done: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.done <= self.total:
            raise ValueError(f"no more can be done than there is, got {self}")

    def __str__(self) -> str:
        return f"{self.done} of {self.total} kinds of step of {self.model} are compiled"


OnWarmUp = Callable[[WarmUp], None]


class WarmUps:
    """The models that replicas compile before they are ready. The ledger is the only writer."""

    def __init__(self) -> None:
        # By replica and model, the newest last.
        self._known: dict[tuple[str, str], tuple[float, WarmUp]] = {}

    def update(self, replica: str, warm_up: WarmUp, now: float) -> None:
        """Take note of how far a replica is; `now` is in seconds. Reports may come late."""
        known = self._known.pop((replica, warm_up.model), None)
        if known is not None and known[1].done > warm_up.done:
            warm_up = known[1]
        self._known[replica, warm_up.model] = now, warm_up

    def newest(self, now: float) -> tuple[WarmUp, ...]:
        """Return of each model that is being compiled what was reported last.

        A replica that died in its warm-up reports no more, however far it was.
        """
        self._known = {
            key: (time, warm_up)
            for key, (time, warm_up) in self._known.items()
            if now - time < _NEWS_WITHIN_S
        }
        newest = {
            warm_up.model: warm_up
            for _, warm_up in self._known.values()
            if warm_up.done < warm_up.total
        }
        return tuple(newest.values())
