"""Who goes next, and with which models: pure functions that service and simulator both call.

Knows no samples, replicas or clocks, only the few numbers each decision needs.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)  # what may be in memory: a model, or an extension of one


def choose_batch(ranked: Iterable[tuple[str, int]], *, images: int, rows: int) -> tuple[str, ...]:
    """The ids that step together, of those of the most urgent one's shape, with their UNet rows:
    at most `images`, with at most `rows` rows in all, the most urgent first, as they come in.

    Urgent is who is due: the turn at which a sample would have ended had it run alone from its
    arrival. So the shorter job of two that arrive together goes first, and whoever waits is
    overtaken less and less, since the due turns of newcomers keep growing: nobody starves.
    """
    chosen: list[str] = []
    for id, needed in ranked:
        if needed <= rows:
            chosen.append(id)
            rows -= needed
        if len(chosen) == images or not rows:
            break
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Admission(Generic[K]):
    """Of those that wait for things in memory: who has all, and what is to come for the others."""

    ready: tuple[str, ...]  # ids
    load: K | None = None
    evict: tuple[K, ...] = ()  # what makes room for it


def admit(
    waiting: Iterable[tuple[str, Sequence[K]]],
    resident: Sequence[K],
    in_use: Collection[K],
    capacity: int,
) -> Admission[K]:
    """What becomes of samples that wait for models or LoRAs, in order of arrival: their ids, and
    what each needs.

    `here` is what is in memory, the one longest without a newcomer first; what samples under way
    need is `busy` and stays. For the first who finds something absent and the room full, an idle
    one goes; where all are busy the first of `here` takes no newcomers from then on, so that it
    ends. So a crowd that asks for one can't keep another away. Who needs more than there is room
    for gets it all the same.
    """
    begin, leaving = list[str](), list[K]()
    load: K | None = None
    kept = set(in_use)
    for id, needs in waiting:
        missing = [one for one in needs if one not in resident]
        if not missing and not set(leaving) & set(needs):
            begin.append(id)
            kept.update(needs)
        elif load is None and missing:
            load = missing[0]
            others = sorted(
                set(resident) - set(needs), key=lambda one: (one in kept, resident.index(one))
            )
            leaving = others[: max(0, len(resident) + 1 - capacity)]
    if set(leaving) & kept:
        return Admission(tuple(begin))
    return Admission(tuple(begin), load, tuple(leaving))
