"""Leases: a sender that renews nothing loses its samples, and their newest snapshots are kept."""

from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample
from serve_app.core.errors import AuraError
from serve_app.core.replica_errors import LeaseExpired, TakenOver
from serve_app.core.service.events import Progress, SegmentDone, Snapshot
from serve_app.core.service.parked_images import MAX_PARKED_SECONDS
from serve_app.core.service.sample_leases import TERM_TICKS, SampleLease, SampleLeases
from serve_app.core.service.suspicion import Suspicion
from serve_app.core.service.tasks import UNSUSPECTED, ImageSnapshot
from tests.support.images import snapshot_of

SUSPECT = Suspicion(deaths=2, suspected=1, is_suspect=True)


class Replica:
    """The leases of a replica, and the ids of the samples that it was made to drop."""

    def __init__(self, capacity: int = 100) -> None:
        self.leases = SampleLeases(capacity)
        self.dropped: list[str] = []
        self.errors: list[AuraError] = []

    def begin(
        self, sender: str, sample: Sample[Any], suspicion: Suspicion = UNSUSPECTED
    ) -> SampleLease:
        def drop(error: AuraError) -> None:
            self.dropped.append(sample.id)
            self.errors.append(error)

        return self.leases.begin(sender, sample, drop, suspicion)

    def is_idle(self) -> bool:
        return self.leases.is_idle

    def take(self, id: str) -> ImageSnapshot | None:
        return self.leases.take(id, "taker")

    def finish(self, lease: SampleLease, png: bytes | None) -> None:
        lease.note(done(lease.id, png))
        self.leases.end(lease, is_done=True)

    def png_of(self, id: str) -> bytes | None:
        taken = self.take(id)
        return taken.png if taken else None

    def tick(self, times: int = TERM_TICKS) -> int:
        return sum(self.leases.tick(float(n)) for n in range(times))


def done(id: str, png: bytes | None = None) -> SegmentDone[Any]:
    return SegmentDone(snapshot_of(id, 20).sample, png, GpuTime(), CostTable())


def test_a_sender_that_renews_keeps_its_samples_for_ever() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0).sample)
    for _ in range(9):
        assert replica.tick(TERM_TICKS - 1) == 0
        replica.leases.renew("s")
    assert replica.dropped == []


def test_a_sender_that_is_gone_loses_all_its_samples_and_no_other_does() -> None:
    replica = Replica()
    for sender, id in (("gone", "a"), ("gone", "b"), ("well", "c")):
        replica.begin(sender, snapshot_of(id, 0).sample)
    replica.tick(TERM_TICKS - 1)
    assert replica.dropped == []
    replica.leases.renew("well")
    assert replica.tick(1) == 2
    assert sorted(replica.dropped) == ["a", "b"]
    assert {type(error) for error in replica.errors} == {LeaseExpired}


class DeafReplica(Replica):
    """Hears renewals only while it has room: Serve lets them wait until an image has left."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._capacity = capacity
        self._at_work: dict[str, SampleLease] = {}
        self._waiting: set[str] = set()

    def begin(
        self, sender: str, sample: Sample[Any], suspicion: Suspicion = UNSUSPECTED
    ) -> SampleLease:
        self._at_work[sample.id] = super().begin(sender, sample, suspicion)
        return self._at_work[sample.id]

    def seconds(self, count: int, *senders: str) -> None:
        """Let time pass, in which these senders renew their leases."""
        for _ in range(count):
            self._waiting.update(senders)
            self._hear()
            self.tick(1)
            for id in set(self.dropped) & self._at_work.keys():
                self.leases.end(self._at_work.pop(id), is_done=False)
            self._hear()

    def _hear(self) -> None:
        if len(self._at_work) < self._capacity:
            for sender in self._waiting:
                self.leases.renew(sender)
            self._waiting.clear()


def test_a_replica_full_of_a_dead_sender_s_samples_drops_them_as_soon_as_any_other() -> None:
    replica = DeafReplica(capacity=3)
    for id in "abc":
        replica.begin("gone", snapshot_of(id, 5).sample)
    replica.seconds(TERM_TICKS + 1)
    assert sorted(replica.dropped) == ["a", "b", "c"]
    assert all(replica.take(id) for id in "abc")


def test_a_full_replica_drops_one_sample_to_hear_who_is_alive_and_then_those_of_the_dead() -> None:
    replica = DeafReplica(capacity=4)
    for sender, id in (("gone", "a"), ("alive", "b"), ("gone", "c"), ("alive", "d")):
        replica.begin(sender, snapshot_of(id, 5).sample)
    replica.seconds(TERM_TICKS, "alive")
    assert replica.dropped == ["d"]  # the last that came, which has waited least
    replica.begin("alive", snapshot_of("e", 5).sample)  # and it is full again
    replica.seconds(1, "alive")
    assert replica.dropped == ["d", "a", "c"]
    replica.seconds(3 * TERM_TICKS, "alive")
    assert len(replica.dropped) == 3


def test_a_full_replica_of_the_living_drops_one_sample_in_each_term_and_no_more() -> None:
    replica = DeafReplica(capacity=2)
    for id in ("a", "b"):
        replica.begin("alive", snapshot_of(id, 5).sample)
    for term in range(3):
        replica.seconds(TERM_TICKS, "alive")
        assert len(replica.dropped) == term + 1
        assert {type(error) for error in replica.errors} == {LeaseExpired}
        replica.begin("alive", snapshot_of(f"{term}", 5).sample)


def test_a_full_replica_drops_nothing_whose_lease_has_no_end() -> None:
    replica = DeafReplica(capacity=2)
    replica.begin("gone", snapshot_of("a", 5).sample)
    replica.begin("", snapshot_of("b", 5).sample)
    replica.seconds(3 * TERM_TICKS)
    assert replica.dropped == ["a"]


def test_the_newest_snapshot_of_a_dropped_sample_is_kept_until_it_is_at_work_again() -> None:
    replica = Replica()
    lease = replica.begin("s", snapshot_of("a", 0).sample)
    for event in (Snapshot(snapshot_of("a", 5).sample), Progress(6)):
        lease.note(event)
    replica.tick()
    taken = replica.take("a")
    assert taken is not None
    assert taken.sample.index == 5
    assert replica.take("a") is taken  # the one who took it may have died before its first step
    replica.begin("taker", taken.sample)
    replica.tick(1)
    assert replica.leases.take("a", "another") is not None  # as it came
    assert replica.dropped == ["a", "a"]


def test_a_sample_that_came_with_latents_is_kept_as_it_came() -> None:
    replica = Replica()
    start = snapshot_of("a", 7).sample
    replica.begin("s", start)
    replica.tick()
    assert replica.take("a") == ImageSnapshot(start)


def test_a_sample_without_a_step_leaves_nothing_to_keep() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0, latents=None).sample)
    assert replica.tick() == 1
    assert replica.take("a") is None


def test_what_was_done_since_its_sender_was_heard_of_is_kept_too() -> None:
    replica = Replica()
    leases = [replica.begin("s", snapshot_of(id, 0).sample) for id in ("a", "b")]
    for lease, png in zip(leases, (None, b"png"), strict=True):
        replica.finish(lease, png)
    assert replica.tick() == 0  # nothing was in the middle of its work
    assert replica.dropped == []
    taken = [replica.take(id) for id in ("a", "b")]
    assert [kept and (kept.sample.index, kept.png) for kept in taken] == [(20, None), (20, b"png")]


def test_what_was_done_is_kept_no_more_once_its_sender_is_heard_of_or_it_was_cancelled() -> None:
    replica = Replica()
    for id, is_done in (("a", True), ("b", False)):
        lease = replica.begin("s", snapshot_of(id, 0).sample)
        lease.note(done(id))
        replica.leases.end(lease, is_done=is_done)
        replica.leases.renew("s")
    replica.tick()
    assert replica.take("a") is replica.take("b") is None


def test_taking_an_image_that_is_still_at_work_ends_the_work_for_good() -> None:
    replica = Replica()
    lease = replica.begin("slow", snapshot_of("a", 0).sample)
    lease.note(Snapshot(snapshot_of("a", 5).sample))
    taken = replica.take("a")
    assert taken is not None
    assert (taken.sample.index, replica.dropped) == (5, ["a"])
    assert [type(error) for error in replica.errors] == [TakenOver]
    replica.leases.end(lease, is_done=False)
    assert replica.tick() == 0


def test_what_the_taker_has_done_itself_stays_its_own() -> None:
    replica = Replica()
    replica.finish(replica.begin("taker", snapshot_of("a", 15).sample), b"png")
    assert replica.take("a") is None


def test_a_call_that_comes_late_does_not_end_what_the_taker_works_at_itself() -> None:
    replica = Replica()
    replica.begin("taker", snapshot_of("a", 5).sample)
    assert replica.take("a") is None
    assert replica.dropped == []


def test_taking_an_image_that_was_just_done_takes_it_whole() -> None:
    replica = Replica()
    replica.finish(replica.begin("dying", snapshot_of("a", 0).sample), b"png")
    assert replica.png_of("a") == b"png"


def test_what_is_done_while_its_lease_expires_is_kept_as_it_is_done() -> None:
    replica = Replica()
    lease = replica.begin("s", snapshot_of("a", 15).sample)
    replica.tick()  # while the image is encoded
    replica.finish(lease, b"png")
    assert replica.png_of("a") == b"png"


def test_samples_without_a_sender_are_never_dropped_and_nobody_need_tick() -> None:
    replica = Replica()
    lease = replica.begin("", snapshot_of("a", 0).sample)
    lease.note(done("a"))
    assert replica.leases.is_idle
    assert replica.tick(3 * TERM_TICKS) == 0
    replica.leases.end(lease, is_done=True)
    assert replica.take("a") is None


def test_nobody_need_tick_once_every_sender_is_gone() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0).sample)
    assert not replica.is_idle()
    replica.tick()
    assert not replica.is_idle()  # its snapshot must be forgotten in time
    replica.leases.tick(MAX_PARKED_SECONDS + TERM_TICKS)
    assert replica.is_idle()
    replica.leases.renew("s")  # which comes late
    assert replica.is_idle()


def test_what_is_known_against_an_image_is_kept_with_its_snapshot() -> None:
    replica = Replica()
    for id in "ab":
        lease = replica.begin("s", snapshot_of(id, 5).sample, SUSPECT)
        lease.note(Progress(6, alone=True))
        if id == "b":
            lease.note(Progress(9))  # it has survived its quarantine
            lease.note(Snapshot(snapshot_of(id, 10).sample))
    replica.tick()
    found = [replica.take(id) for id in "ab"]
    assert [kept and kept.suspicion.is_suspect for kept in found] == [True, False]
    assert [kept and kept.suspicion.deaths for kept in found] == [2, 2]


def test_an_image_without_a_step_is_kept_for_what_is_known_against_it() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0, latents=None).sample, SUSPECT)
    replica.tick()
    kept = replica.take("a")
    assert kept is not None
    assert kept.suspicion == SUSPECT
