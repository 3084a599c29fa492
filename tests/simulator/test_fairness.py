"""One caller's images beside another's flood, on the simulator's exact clock."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.comparison import SIZE
from serve_app.simulator.fairness import compare_fairness, flood_trace
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival

REPLICAS = {Stage.BASE: 2, Stage.REFINER: 2}
ONE_REPLICA = {Stage.BASE: 1}
STEPS = 30


def run(
    trace: Sequence[Arrival],
    *,
    fair: bool = True,
    ingresses: int = 1,
    replicas: Mapping[Stage, int] = REPLICAS,
) -> SimulationResult:
    cluster = Cluster(
        SIZE, GpuSpeed(), route_by_owed_work(), None, replicas, fair=fair, ingresses=ingresses
    )
    return cluster.run(sorted(trace, key=lambda arrival: arrival.at))


def images(caller: str, at: Sequence[float], steps: int = STEPS) -> list[Arrival]:
    return [Arrival(time, steps, handoff=0.8, caller=caller) for time in at]


def latencies(result: SimulationResult, caller: str) -> list[float]:
    """Return the seconds of a caller's images that came during another's, in order."""
    others = [done for done in result.finished if done.arrival.caller != caller]
    end = max((done.arrival.at + done.seconds for done in others), default=0.0)
    return sorted(
        done.seconds
        for done in result.finished
        if done.arrival.caller == caller and done.arrival.at < end
    )


def most_allowed() -> float:
    """Return the time of one image in full batches of the caller's own, and one image's time."""
    full = run(images("b", [0.0] * 8)).finished  # two replicas of four
    return max(done.seconds for done in full) + full[0].isolated_seconds


ONE_EACH_TWO_SECONDS = [1.0 + 2 * number for number in range(40)]


@pytest.mark.parametrize("ingresses", [1, 2])
@pytest.mark.parametrize(("number", "steps"), [(200, 10), (20, 150)])
def test_a_flood_costs_another_caller_at_most_one_image_time(
    number: int, steps: int, ingresses: int
) -> None:
    trace = images("a", [0.0] * number, steps) + images("b", ONE_EACH_TWO_SECONDS)
    shared = latencies(run(trace, ingresses=ingresses), "b")
    assert percentile(shared, 0.95) <= most_allowed()
    assert percentile(latencies(run(trace, fair=False), "b"), 0.95) > 2 * most_allowed()


def seconds_of_requests(result: SimulationResult, caller: str) -> list[float]:
    """Return when a caller's requests were done that came during another's, each with its last."""
    times = defaultdict[float, list[float]](list)
    others = [done for done in result.finished if done.arrival.caller != caller]
    end = max(done.arrival.at + done.seconds for done in others)
    for done in result.finished:
        if done.arrival.caller == caller and done.arrival.at < end:
            times[done.arrival.at].append(done.seconds)
    return sorted(max(seconds) for seconds in times.values())


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("requests", "steps", "ingresses"),
    [
        (50, 10, 1),
        pytest.param(50, 10, 2, marks=pytest.mark.long),
        pytest.param(10, 150, 1, marks=pytest.mark.long),
        pytest.param(10, 150, 2, marks=pytest.mark.long),
    ],
)
def test_nor_does_a_flood_of_requests_for_four_images_each(
    requests: int, steps: int, ingresses: int, count: int
) -> None:
    """The other caller asks for one image every 2 s, or for four every 8 s."""
    at = [1.0 + 2 * count * number for number in range(40 // count) for _ in range(count)]
    trace = images("a", [0.0] * 4 * requests, steps) + images("b", at)
    shared = seconds_of_requests(run(trace, ingresses=ingresses), "b")
    assert len(shared) >= 5
    assert percentile(shared, 0.95) <= most_allowed()


@pytest.mark.parametrize(
    ("weight", "steps", "ingresses"),
    [
        (3.0, (10, 30), 1),
        (3.0, (10, 30), 2),
        (3.0, (30, 30), 2),
        (1.0, (10, 30), 2),
        (1.0, (30, 10), 2),
    ],
)
def test_callers_get_work_by_their_weights_whatever_they_ask_for_and_wherever(
    weight: float, steps: tuple[int, int], ingresses: int
) -> None:
    """With two ingresses each caller has one of its own."""
    weights = (weight, 1.0)
    work = 12_000  # steps in all
    flood = [
        Arrival(0.0, steps, caller=caller, weight=weight)
        for caller, steps, weight in zip("ab", steps, weights, strict=True)
        for _ in range(int(work * weight / sum(weights) / steps))
    ]
    result = run(flood, ingresses=ingresses, replicas={Stage.BASE: 2})
    while_both = min(
        max(done.seconds for done in result.finished if done.arrival.caller == caller)
        for caller in "ab"
    )
    begin, end = (
        next(point.charged for point in result.timeline if point.at > share * while_both)
        for share in (0.15, 0.85)
    )
    seconds = {caller: end[caller] - begin[caller] for caller in "ab"}
    assert seconds["a"] / seconds["b"] == pytest.approx(weight, rel=0.05)


def test_for_a_lone_caller_nothing_changes() -> None:
    trace = images("a", [0.3 * number for number in range(40)]) + images("a", [3.0] * 20, 10)
    named, nameless = run(trace), run(trace, fair=False)
    assert named.finished == nameless.finished
    assert fmean(done.seconds for done in named.finished) > 0


def test_the_flood_s_comparison_shows_what_fair_shares_are_worth() -> None:
    rows = {(row.service, row.caller): row for row in compare_fairness(flood_trace(2, 30.0), 2)}
    for service in ("fair shares", "fair, two ingresses"):
        assert rows[service, "steady"].p95 < 0.25 * rows["by urgency alone", "steady"].p95
        assert rows[service, "steady"].images == 15
        assert (rows[service, "steady"].throughput or 0.0) >= 0.98
    assert rows["by urgency alone", "steady"].throughput == 1.0


def test_without_a_queue_there_is_no_throughput_to_compare() -> None:
    for row in compare_fairness([*images("a", [0.0]), *images("b", [0.0])], 2):
        assert row.throughput is None
