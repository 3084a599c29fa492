"""Who goes next, where, and with which models: pure functions that the service and the simulator
both call.

Knows no samples, replicas or clocks, only the few numbers each decision needs.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample that could step now.

    `due` is the turn at which it would have ended had it run alone from its arrival: the shorter
    job of two that arrive together goes first, and whoever waits is overtaken less and less, since
    the due turns of newcomers keep growing. So nobody starves.
    """

    id: str
    shape: tuple[Hashable, ...]  # Sample.shape
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


@dataclass(frozen=True, slots=True)
class Seating:
    """Of those that wait for a model: whose is in memory, and what is to be loaded for the rest."""

    begin: tuple[str, ...]  # ids
    load: str | None = None  # a model
    drop: str | None = None  # the model that makes room for it


def seat(
    waiting: Iterable[tuple[str, str]],
    here: Sequence[str],
    busy: Collection[str],
    room: int,
) -> Seating:
    """What becomes of samples that wait for their models, in order of arrival: ids and models.

    `here` are the models in memory, the one longest without a newcomer first; those of samples
    under way are `busy` and stay. For the first who finds its model absent and the room full, an
    idle model goes; where all are busy the first of `here` takes no newcomers from then on, so
    that it ends. So a crowd that asks for one model can't keep another away.
    """
    begin, load, leaving = [], None, None
    kept = set(busy)
    for id, model in waiting:
        if model in here and model != leaving:
            begin.append(id)
            kept.add(model)
        elif load is None and model not in here:
            load = model
            if len(here) >= room:
                leaving = next((one for one in here if one not in kept), here[0])
    if leaving in kept:
        return Seating(tuple(begin))
    return Seating(tuple(begin), load, leaving)


def rank_replicas(
    replicas: Sequence[str], load: Mapping[str, int], last_chosen: Mapping[str, int]
) -> list[str]:
    """Replica ids, the best home for a new image first: least loaded, then longest not chosen."""
    return sorted(replicas, key=lambda r: (load.get(r, 0), last_chosen.get(r, -1)))
