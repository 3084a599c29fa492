"""`Seats`: what is in memory, and in which order its newcomers came. Only the scheduler writes it.

Knows no samples and loads nothing: it remembers what `policy.seat` decides by.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Generic

from serve_app.core.scheduling.batching import Admission, K, admit


class Residency(Generic[K]):
    """Names in memory, of which there is `room` for so many."""

    def __init__(self, resident: Iterable[K], capacity: int) -> None:
        if capacity < 1:
            raise ValueError("room for at least one")
        self.capacity = capacity
        self._resident = dict.fromkeys(resident)  # the one longest without a newcomer first

    def set_resident(self, resident: Collection[K]) -> None:
        """These are in memory now; what was known of their order is kept."""
        stayed = [name for name in self._resident if name in resident]
        self._resident = dict.fromkeys((*stayed, *resident))

    def has_all(self, names: Iterable[K]) -> bool:
        """Whether all of these are in memory."""
        return all(name in self._resident for name in names)

    def admit(
        self, waiting: Sequence[tuple[str, Sequence[K]]], in_use: Collection[K]
    ) -> Admission[K]:
        """See `policy.seat`; those that begin are the newcomers of what they need."""
        seating = admit(waiting, tuple(self._resident), in_use, self.capacity)
        needs = dict(waiting)
        for id in seating.ready:
            for name in needs[id]:
                self._resident[name] = self._resident.pop(name)
        return seating
