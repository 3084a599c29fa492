"""Who goes next, and where: pure functions that the service and the simulator both call.

Knows no samples, replicas or clocks, only the few numbers each decision needs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample that could step now.

    `due` is the turn at which it would have ended had it run alone from its arrival: the shorter
    job of two that arrive together goes first, and whoever waits is overtaken less and less, since
    the due turns of newcomers keep growing. So nobody starves.
    """

    id: str
    shape: tuple[int, ...]  # Sample.shape
    rows: int
    due: int


def choose_batch(candidates: Iterable[Candidate], *, images: int, rows: int) -> tuple[str, ...]:
    """The ids that step together: the most urgent one, and the most urgent of its shape beside it.

    At most `images` of them, with at most `rows` UNet rows in all; in order of urgency.
    """
    ranked = sorted(candidates, key=lambda c: c.due)
    chosen: list[str] = []
    for candidate in ranked:
        if len(chosen) < images and candidate.shape == ranked[0].shape and candidate.rows <= rows:
            chosen.append(candidate.id)
            rows -= candidate.rows
    return tuple(chosen)


def rank_replicas(
    replicas: Sequence[str], load: Mapping[str, int], last_chosen: Mapping[str, int]
) -> list[str]:
    """Replica ids, the best home for a new image first: least loaded, then longest not chosen."""
    return sorted(replicas, key=lambda r: (load.get(r, 0), last_chosen.get(r, -1)))
