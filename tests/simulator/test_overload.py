"""What admission makes of more requests than a simulated cluster can do."""

from dataclasses import replace

import pytest

from serve_app.core.capacity.admission import AdmissionLimits, Refusal
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.overload import (
    BURST_CASE,
    LARGE_CASE,
    STEADY_CASE,
    Returners,
    run_case,
)
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.traces import Arrival

SIZE = BatchSize(4, (8,))
STEPS = {(stage, 1024, 1024, 8): 0.1 for stage in Stage}  # seconds
SPEED = GpuSpeed(step_seconds=STEPS, overhead_seconds=0.0, prompt_seconds=0.0, vae_tflops=1e9)


def run(*arrivals: Arrival, refused_return: bool = False, seconds: float = 120) -> SimulationResult:
    """Run a trace on one base replica, in batches of four images, with a tenth of a second a step.

    No image waits for others longer than so many seconds.
    """
    limits = AdmissionLimits(queue_seconds=seconds, open_requests=1000)
    start = {Stage.BASE: 1}
    return Cluster(
        SIZE,
        SPEED,
        route_by_owed_work(),
        None,
        start,
        limits=limits,
        refused_return=refused_return,
    ).run(arrivals)


def test_what_would_be_late_is_refused_and_what_is_admitted_is_in_time() -> None:
    result = run(*[Arrival(0.0, steps=20, timeout_s=6.0)] * 30)
    assert {refused.refusal for refused in result.refused} == {Refusal.DEADLINE}
    assert len(result.finished) >= 8
    assert all(image.seconds <= 6.0 for image in result.finished)
    assert not result.late


def test_a_deadline_that_nothing_can_meet_is_refused_and_never_comes_back() -> None:
    result = run(Arrival(0.0, steps=20, timeout_s=1.0), refused_return=True)
    (refused,) = result.refused
    assert (refused.refusal, refused.retry_after) == (Refusal.IMPOSSIBLE, 0)
    assert Returners.between(0.0, 120.0, result) == Returners(0, 0)


def test_the_refused_come_back_one_after_the_other_and_are_accepted() -> None:
    arrivals = [Arrival(0.0, steps=20, caller=str(number)) for number in range(40)]
    result = run(*arrivals, refused_return=True, seconds=4.0)
    refused = [image for image in result.refused if not image.returned]
    assert 10 < len(refused) < 40
    retries = [image.retry_after for image in refused]
    assert retries == sorted(retries)
    assert len(result.finished) == 40 - sum(image.returned for image in result.refused)
    assert len(result.finished) >= 38
    returners = Returners.between(0.0, 120.0, result)
    assert returners.count == len(refused)
    assert returners.accepted == len(refused) - (40 - len(result.finished))


def test_an_image_that_waits_too_long_takes_no_steps() -> None:
    """The replica is there too late: the images that can't be in time any more are given up."""
    limits = AdmissionLimits()

    def grow(now: float, _: object) -> dict[Stage, int]:
        return {Stage.BASE: 1, Stage.REFINER: 0}

    arrivals = [Arrival(0.0, 20, timeout_s=seconds) for seconds in (5.0, 30.0)]
    result = Cluster(
        SIZE,
        SPEED,
        route_by_owed_work(),
        grow,
        {},
        load_seconds=8.0,
        limits=limits,
    ).run(arrivals)
    (late,) = result.late
    assert (late.arrival.timeout_s, late.begun) == (5.0, False)
    assert len(result.finished) == 1


def test_an_image_that_is_late_at_its_deadline_is_dropped_with_its_steps() -> None:
    """It begins alone; then another caller's images of another shape have every second turn."""
    hurried = Arrival(0.0, steps=40, timeout_s=4.5)
    others = [Arrival(0.1, steps=100, width=832, height=1216, caller="b")] * 11
    draft = Arrival(1.0, steps=4, width=832, height=1216, caller="b")
    result = run(hurried, *others, draft)
    (late,) = result.late
    assert (late.arrival, late.begun) == (hurried, True)
    assert len(result.finished) == 12
    (waited,) = [image for image in result.finished if image.arrival == draft]
    # The replica has all the images that it may have, until the late one leaves its place.
    assert 4.5 < draft.at + waited.seconds < 6.0


def test_five_times_the_capacity_leaves_goodput_at_capacity() -> None:
    result = run_case(replace(STEADY_CASE, seconds=60.0), seed=1)
    assert result.goodput >= 0.95
    assert 0.7 < result.refused < 0.85
    assert result.late <= 0.005 * result.images


def test_after_a_burst_those_who_were_sent_away_are_accepted() -> None:
    result = run_case(BURST_CASE, seed=1)
    assert result.returned_later.count > 100
    assert result.returned_later.share >= 0.8
    assert Returners(0, 0).share == 1


@pytest.mark.long
def test_half_as_much_again_on_many_gpus_leaves_goodput_near_capacity() -> None:
    result = run_case(replace(LARGE_CASE, gpus=24, seconds=50.0, warm_up=30.0), seed=1)
    assert result.goodput >= 0.9
    assert result.returned_later.count == 0
    assert result.wasted <= 0.02 * result.images


def test_replicas_with_fewer_lanes_for_fewer_images_make_more_in_time() -> None:
    case = replace(LARGE_CASE, gpus=24, seconds=50.0, warm_up=30.0)
    padded, fitting = (run_case(case, 1, BatchSize(4, counts)) for counts in ((8,), (2, 4, 6, 8)))
    assert fitting.goodput > padded.goodput
    assert fitting.late < padded.late


@pytest.mark.long
def test_half_as_much_again_on_256_gpus_leaves_goodput_at_capacity() -> None:
    assert run_case(LARGE_CASE, seed=1).goodput >= 0.95


@pytest.mark.long
def test_half_as_much_again_on_32_gpus_leaves_goodput_at_capacity() -> None:
    assert run_case(replace(LARGE_CASE, gpus=32), seed=1).goodput >= 0.95
