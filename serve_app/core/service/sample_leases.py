"""`SampleLeases`: for whom a replica works at its samples, and what it keeps when they are gone.

An ingress renews the lease of all its samples at once. One that is gone renews nothing: then its
samples are dropped, and their newest snapshots parked (Gray and Cheriton, Leases, 1989). No
replicas and no clock: the caller ticks, so a process that was suspended takes nobody for gone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.diffusion.sample import Sample
from serve_app.core.errors import AuraError
from serve_app.core.replica_errors import LeaseExpired, TakenOver
from serve_app.core.service.events import SegmentDone, Snapshot, StageEvent
from serve_app.core.service.parked_images import ParkedImages
from serve_app.core.service.suspicion import Suspicion
from serve_app.core.service.tasks import UNSUSPECTED, ImageSnapshot

RENEW_EVERY_S = 2.0  # seconds between two renewals by a sender
TERM_TICKS = 7  # ticks of a second without a renewal after which a sender is gone

Drop = Callable[[AuraError], None]  # ends the work at a sample, whose stream raises the error


@dataclass(slots=True, eq=False)
class SampleLease:
    """One sample at work, its newest snapshot, and how to end the work."""

    sender: str
    id: str
    newest: ImageSnapshot | None
    drop: Drop
    suspicion: Suspicion = UNSUSPECTED

    @property
    def kept(self) -> ImageSnapshot | None:
        """What is kept of the sample when its sender is gone."""
        return self.newest and replace(self.newest, suspicion=self.suspicion)

    def note(self, event: StageEvent) -> None:
        """Take note of an event of the sample's stream."""
        self.suspicion = self.suspicion.after_event(event)
        match event:
            case Snapshot(sample):
                self.newest = ImageSnapshot(sample)
            case SegmentDone(sample, png):
                self.newest = ImageSnapshot(sample, png)
            case _:
                pass


class SampleLeases:
    """The samples of one replica, by sender, and what is parked of those without one.

    `capacity` is the number of samples at which the replica hears nobody: renewals then wait for
    one of them to end. So a full replica drops the sample that came last when a lease is over,
    and hears a second later who is alive.
    """

    def __init__(self, capacity: int, parked: ParkedImages | None = None) -> None:
        self._capacity = capacity
        self._parked = ParkedImages() if parked is None else parked
        self._ticks: dict[str, int] = {}  # by sender: since it was heard of
        self._at_work: dict[SampleLease, None] = {}  # in the order in which they came
        self._unconfirmed: dict[str, list[ImageSnapshot]] = {}  # by sender: done since it was
        self._now = 0.0  # of the last tick
        self._has_made_room = False  # at the last tick, so that senders were heard since

    @property
    def is_idle(self) -> bool:
        """Whether nobody need tick."""
        return not self._ticks and not self._parked

    def begin(
        self, sender: str, sample: Sample[Any], drop: Drop, suspicion: Suspicion = UNSUSPECTED
    ) -> SampleLease:
        """Note that a sample has come; `drop` is called to end the work at it.

        A sample of sender "" has a lease without end. One without a step is kept for what is known
        against it.
        """
        if sender:
            self._ticks[sender] = 0
            self._unconfirmed.pop(sender, None)
        is_worth_keeping = sample.latents is not None or suspicion.deaths > 0
        newest = ImageSnapshot(sample) if is_worth_keeping else None
        if newest is not None:
            self._parked.drop_older(newest)
        lease = SampleLease(sender, sample.id, newest, drop, suspicion)
        self._at_work[lease] = None
        return lease

    def end(self, lease: SampleLease, *, is_done: bool) -> None:
        """Note that the replica works at a sample no more.

        What is done is kept until the sender is heard of again: it may have died just before. So is
        what was done while its lease expired.
        """
        if lease in self._at_work:
            del self._at_work[lease]
            if is_done and lease.kept is not None and lease.sender in self._ticks:
                self._unconfirmed.setdefault(lease.sender, []).append(lease.kept)
        elif is_done and lease.kept is not None:
            self._parked.put(lease.kept, self._now)

    def renew(self, sender: str) -> None:
        """Note that a sender was heard of."""
        if sender in self._ticks:
            self._ticks[sender] = 0
            self._unconfirmed.pop(sender, None)

    def tick(self, now: float) -> int:
        """Note that a second has passed in which senders could be heard; drop what is orphaned.

        Return how many samples have lost their sender. `now` is for the parked.
        """
        self._now = now
        self._parked.forget(now)
        for sender in self._ticks:
            self._ticks[sender] += 1
        expired = [sender for sender, ticks in self._ticks.items() if ticks >= TERM_TICKS]
        orphans = [lease for lease in self._at_work if lease.sender in expired]
        is_deaf = len(self._at_work) >= self._capacity and not self._has_made_room
        self._has_made_room = is_deaf and bool(orphans)
        if self._has_made_room:
            self._drop(orphans[-1], LeaseExpired("the replica was full, and heard no sender"))
            return 0
        for sender in expired:
            del self._ticks[sender]
            self._park_unconfirmed(sender)
        for lease in orphans:
            self._drop(lease, LeaseExpired("the image's sender was taken for gone"))
        return len(orphans)

    def take(self, id: str, taker: str) -> ImageSnapshot | None:
        """Return the newest snapshot of an image whose job the sender `taker` has taken over.

        The work of another sender at it ends. The snapshot stays parked: it may be the only one
        until the taker's first step.
        """
        for lease in [lease for lease in self._at_work if lease.id == id]:
            if lease.sender != taker:
                self._drop(lease, TakenOver("another process works at this image's job"))
        for sender in list(self._unconfirmed):
            if sender != taker:
                self._park_unconfirmed(sender)
        return self._parked.get(id)

    def _drop(self, lease: SampleLease, error: AuraError) -> None:
        del self._at_work[lease]
        lease.drop(error)
        if lease.kept is not None:
            self._parked.put(lease.kept, self._now)

    def _park_unconfirmed(self, sender: str) -> None:
        for snapshot in self._unconfirmed.pop(sender, ()):
            self._parked.put(snapshot, self._now)
