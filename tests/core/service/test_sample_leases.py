"""Leases: a sender that renews nothing loses its samples, and their newest snapshots are kept."""

from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample
from serve_app.core.service.events import Progress, SegmentDone, Snapshot
from serve_app.core.service.sample_leases import TERM_TICKS, SampleLease, SampleLeases
from serve_app.core.service.tasks import ImageSnapshot
from tests.support.images import snapshot_of


class Replica:
    """The leases of a replica, and the ids of the samples that it was made to drop."""

    def __init__(self) -> None:
        self.leases = SampleLeases()
        self.dropped: list[str] = []

    def begin(self, sender: str, sample: Sample[Any]) -> SampleLease:
        return self.leases.begin(sender, sample, lambda: self.dropped.append(sample.id))

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


def test_the_newest_snapshot_of_a_dropped_sample_is_kept_for_who_asks_once() -> None:
    replica = Replica()
    lease = replica.begin("s", snapshot_of("a", 0).sample)
    for event in (Snapshot(snapshot_of("a", 5).sample), Progress(6)):
        lease.note(event)
    replica.tick()
    taken = replica.leases.take("a")
    assert taken is not None
    assert taken.sample.index == 5
    assert replica.leases.take("a") is None


def test_a_sample_that_came_with_latents_is_kept_as_it_came() -> None:
    replica = Replica()
    start = snapshot_of("a", 7).sample
    replica.begin("s", start)
    replica.tick()
    assert replica.leases.take("a") == ImageSnapshot(start)


def test_a_sample_without_a_step_leaves_nothing_to_keep() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0, latents=None).sample)
    assert replica.tick() == 1
    assert replica.leases.take("a") is None


def test_what_was_done_since_its_sender_was_heard_of_is_kept_too() -> None:
    replica = Replica()
    leases = [replica.begin("s", snapshot_of(id, 0).sample) for id in ("a", "b")]
    for lease, png in zip(leases, (None, b"png"), strict=True):
        lease.note(done(lease.id, png))
        replica.leases.end(lease, is_done=True)
    assert replica.tick() == 0  # nothing was in the middle of its work
    assert replica.dropped == []
    taken = [replica.leases.take(id) for id in ("a", "b")]
    assert [kept and (kept.sample.index, kept.png) for kept in taken] == [(20, None), (20, b"png")]


def test_what_was_done_is_kept_no_more_once_its_sender_is_heard_of_or_it_was_cancelled() -> None:
    replica = Replica()
    for id, is_done in (("a", True), ("b", False)):
        lease = replica.begin("s", snapshot_of(id, 0).sample)
        lease.note(done(id))
        replica.leases.end(lease, is_done=is_done)
        replica.leases.renew("s")
    replica.tick()
    assert replica.leases.take("a") is replica.leases.take("b") is None


def test_taking_an_image_that_is_still_at_work_ends_the_work() -> None:
    replica = Replica()
    lease = replica.begin("dying", snapshot_of("a", 0).sample)
    lease.note(Snapshot(snapshot_of("a", 5).sample))
    taken = replica.leases.take("a")
    assert taken is not None
    assert (taken.sample.index, replica.dropped) == (5, ["a"])
    replica.leases.end(lease, is_done=False)
    assert replica.tick() == 0
    assert replica.leases.take("a") is None


def test_taking_an_image_that_was_just_done_takes_it_whole() -> None:
    replica = Replica()
    lease = replica.begin("dying", snapshot_of("a", 0).sample)
    lease.note(done("a", b"png"))
    replica.leases.end(lease, is_done=True)
    taken = replica.leases.take("a")
    assert taken is not None
    assert taken.png == b"png"
    replica.tick()
    assert replica.leases.take("a") is None


def test_a_sender_that_sends_its_image_again_makes_the_kept_snapshot_worthless() -> None:
    replica = Replica()
    lease = replica.begin("s", snapshot_of("a", 5).sample)
    replica.tick()  # the sender was only slow
    replica.leases.end(lease, is_done=False)
    again = replica.begin("s", snapshot_of("a", 5).sample)
    again.note(Snapshot(snapshot_of("a", 10).sample))
    replica.leases.end(again, is_done=False)
    assert replica.leases.take("a") is None


def test_samples_without_a_sender_are_never_dropped_and_nobody_need_tick() -> None:
    replica = Replica()
    lease = replica.begin("", snapshot_of("a", 0).sample)
    lease.note(done("a"))
    assert replica.leases.is_idle
    assert replica.tick(3 * TERM_TICKS) == 0
    replica.leases.end(lease, is_done=True)
    assert replica.leases.take("a") is None


def test_nobody_need_tick_once_every_sender_is_gone() -> None:
    replica = Replica()
    replica.begin("s", snapshot_of("a", 0).sample)
    assert not replica.leases.is_idle
    replica.tick()
    assert replica.leases.is_idle
