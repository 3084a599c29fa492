"""`Seats`: what is in memory, and in which order its newcomers came. Only the scheduler writes it.

Knows no samples and loads nothing: it remembers what `policy.seat` decides by.
"""

from collections.abc import Collection, Iterable, Sequence

from serve_app.core.scheduling.batching import Seating, seat


class Seats:
    """Names in memory, of which there is `room` for so many."""

    def __init__(self, here: Iterable[str], room: int) -> None:
        if room < 1:
            raise ValueError("room for at least one")
        self.room = room
        self._here = dict.fromkeys(here)  # the one longest without a newcomer first

    def hold(self, here: Collection[str]) -> None:
        """These are in memory now; what was known of their order is kept."""
        stayed = [name for name in self._here if name in here]
        self._here = dict.fromkeys((*stayed, *here))

    def hold_all(self, names: Iterable[str]) -> bool:
        """Whether all of these are in memory."""
        return all(name in self._here for name in names)

    def seated(
        self, waiting: Sequence[tuple[str, Sequence[str]]], busy: Collection[str]
    ) -> Seating:
        """See `policy.seat`; those that begin are the newcomers of what they need."""
        seating = seat(waiting, tuple(self._here), busy, self.room)
        needs = dict(waiting)
        for id in seating.begin:
            for name in needs[id]:
                self._here[name] = self._here.pop(name)
        return seating
