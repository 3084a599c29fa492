"""Which models, and which extensions of a model, stay in memory, and who may start with them.

No samples are held here and nothing is loaded: the scheduler decides with it what to load next.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)  # a model, or an extension of one


@dataclass(frozen=True, slots=True)
class Admission(Generic[K]):
    """Of samples that wait for something in memory: which may start, and what to load next."""

    ready: tuple[str, ...]  # ids
    load: K | None = None
    evict: tuple[K, ...] = ()  # what leaves memory for it


def admit(
    waiting: Iterable[tuple[str, Sequence[K]]],
    resident: Sequence[K],
    in_use: Collection[K],
    capacity: int,
) -> Admission[K]:
    """Return which of the waiting samples may start, and what to load for the first that can't.

    `waiting` has the samples' ids and needs in order of arrival. `resident` is ordered by when a
    sample was last admitted for each key, oldest first. What running samples need is `in_use` and
    stays. When memory is full, something idle is evicted; when everything is in use, the first of
    `resident` takes no newcomers from then on, so that its samples end. A steady stream of samples
    for one model can't keep another model out. A sample that needs more than `capacity` gets all of
    it nevertheless.
    """
    ready, evict = list[str](), list[K]()
    load: K | None = None
    staying = set(in_use)
    for id, needs in waiting:
        missing = [need for need in needs if need not in resident]
        if not missing and not set(evict) & set(needs):
            ready.append(id)
            staying.update(needs)
        elif load is None and missing:
            load = missing[0]
            others = sorted(
                set(resident) - set(needs), key=lambda key: (key in staying, resident.index(key))
            )
            evict = others[: max(0, len(resident) + 1 - capacity)]
    if set(evict) & staying:
        return Admission(tuple(ready))
    return Admission(tuple(ready), load, tuple(evict))


class Residency(Generic[K]):
    """What is in memory, at most `capacity` of it, in the order in which newcomers came for it.

    Only the scheduler writes it.
    """

    def __init__(self, resident: Iterable[K], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._resident = dict.fromkeys(resident)  # longest without a newcomer first

    def set_resident(self, resident: Collection[K]) -> None:
        """Replace what is in memory, and keep the order of what stays."""
        stayed = [key for key in self._resident if key in resident]
        self._resident = dict.fromkeys((*stayed, *resident))

    def has_all(self, keys: Iterable[K]) -> bool:
        """Return whether all of these are in memory."""
        return all(key in self._resident for key in keys)

    def admission(
        self, waiting: Iterable[tuple[str, Sequence[K]]], in_use: Collection[K]
    ) -> Admission[K]:
        """Return what `admit` decides for these samples; nothing changes."""
        return admit(waiting, tuple(self._resident), in_use, self.capacity)

    def record_newcomer(self, needs: Iterable[K]) -> None:
        """Note that a sample has started which needs these."""
        for key in needs:
            self._resident[key] = self._resident.pop(key)
