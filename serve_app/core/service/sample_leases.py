"""`SampleLeases`: for whom a replica works at its samples, and what it keeps when they are gone.

An ingress renews the lease of all its samples at once. One that is gone renews nothing: then its
samples are dropped, and their newest snapshots parked (Gray and Cheriton, Leases, 1989). No
replicas and no clock: the caller ticks, so a process that was suspended takes nobody for gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.sample import Sample
from serve_app.core.service.events import SegmentDone, Snapshot, StageEvent
from serve_app.core.service.parked_images import ParkedImages
from serve_app.core.service.tasks import ImageSnapshot

RENEW_EVERY_S = 2.0  # seconds between two renewals by a sender
TERM_TICKS = 7  # ticks of a second without a renewal after which a sender is gone


@dataclass(slots=True, eq=False)
class SampleLease:
    """One sample at work, its newest snapshot, and how to end the work."""

    sender: str
    id: str
    newest: ImageSnapshot | None
    drop: Callable[[], None]

    def note(self, event: StageEvent) -> None:
        """Take note of an event of the sample's stream."""
        match event:
            case Snapshot(sample):
                self.newest = ImageSnapshot(sample)
            case SegmentDone(sample, png):
                self.newest = ImageSnapshot(sample, png)
            case _:
                pass


class SampleLeases:
    """The samples of one replica, by sender, and what is parked of those without one."""

    def __init__(self, parked: ParkedImages | None = None) -> None:
        self._parked = ParkedImages() if parked is None else parked
        self._ticks: dict[str, int] = {}  # by sender: since it was heard of
        self._at_work: set[SampleLease] = set()
        self._unconfirmed: dict[str, list[ImageSnapshot]] = {}  # by sender: done since it was

    @property
    def is_idle(self) -> bool:
        """Whether nobody need tick."""
        return not self._ticks

    def begin(self, sender: str, sample: Sample[Any], drop: Callable[[], None]) -> SampleLease:
        """Note that a sample has come; `drop` is called if its sender is gone.

        A sample of sender "" has a lease without end.
        """
        if sender:
            self.renew(sender)
        self._parked.pop(sample.id)  # its sender goes on from a snapshot that is at least as new
        newest = None if sample.latents is None else ImageSnapshot(sample)
        lease = SampleLease(sender, sample.id, newest, drop)
        self._at_work.add(lease)
        return lease

    def end(self, lease: SampleLease, *, is_done: bool) -> None:
        """Note that the replica works at a sample no more.

        What is done is kept until the sender is heard of again: it may have died just before.
        """
        if lease not in self._at_work:
            return
        self._at_work.remove(lease)
        if is_done and lease.newest is not None and lease.sender in self._ticks:
            self._unconfirmed.setdefault(lease.sender, []).append(lease.newest)

    def renew(self, sender: str) -> None:
        """Note that a sender was heard of."""
        self._ticks[sender] = 0
        self._unconfirmed.pop(sender, None)

    def tick(self, now: float) -> int:
        """Note that a second has passed in which senders could be heard; drop what is orphaned.

        Return how many samples were dropped in the middle of their work. `now` is for the parked.
        """
        self._parked.forget(now)
        for sender in self._ticks:
            self._ticks[sender] += 1
        expired = [sender for sender, ticks in self._ticks.items() if ticks >= TERM_TICKS]
        orphans = [lease for lease in self._at_work if lease.sender in expired]
        for sender in expired:
            for snapshot in self._unconfirmed.pop(sender, ()):
                self._parked.put(snapshot, now)
            del self._ticks[sender]
        for lease in orphans:
            self._drop(lease)
            if lease.newest is not None:
                self._parked.put(lease.newest, now)
        return len(orphans)

    def take(self, id: str) -> ImageSnapshot | None:
        """Return the newest snapshot of an image whose sender is gone, and keep it no more.

        If the replica still works at the image, the work ends.
        """
        found = [self._parked.pop(id)]
        for sender, snapshots in self._unconfirmed.items():
            found += [snapshot for snapshot in snapshots if snapshot.sample.id == id]
            self._unconfirmed[sender] = [s for s in snapshots if s.sample.id != id]
        for lease in [lease for lease in self._at_work if lease.id == id]:
            found.append(lease.newest)
            self._drop(lease)
        known = [snapshot for snapshot in found if snapshot is not None]
        return max(known, key=lambda snapshot: snapshot.steps_done, default=None)

    def _drop(self, lease: SampleLease) -> None:
        self._at_work.remove(lease)
        lease.drop()
