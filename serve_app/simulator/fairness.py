"""One caller's flood beside another's steady requests, with and without fair shares.

What sharing costs is measured while images wait. The time when the last images are done says
little: a replica that ends with one long image has empty places, however it chose among the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve_app.core.capacity.routing import max_queued_images
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.comparison import LOAD_SECONDS, SIZE, split_by_work, work_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival

FLOOD = "flood"
FLOODING, STEADY_CALLER = "flooding", "steady"
_STEPS, _HANDOFF = 30, 0.8
_FLOOD_IMAGES_PER_GPU = 50
_INTERVAL = 2.0  # seconds between two images of the steady caller
UNFAIR = "by urgency alone"
SERVICES = {  # by name: whether it shares by callers, and its ingresses
    "fair shares": (True, 1),
    "fair, two ingresses": (True, 2),
    UNFAIR: (False, 1),
}


@dataclass(frozen=True, slots=True)
class CallerSummary:
    """A caller's images under one service; times are in seconds."""

    service: str
    caller: str
    images: int
    p50: float
    p95: float
    finished_at: float  # when the caller's last image was done
    throughput: float | None  # of the service, relative to the unfair one; None if no images wait


def flood_trace(gpus: int, seconds: float) -> tuple[Arrival, ...]:
    """Return a flood that comes at once, and an image every two seconds of another caller."""
    flood = Arrival(0.0, _STEPS, handoff=_HANDOFF, caller=FLOODING)
    steady = [
        Arrival(_INTERVAL * number, _STEPS, handoff=_HANDOFF, caller=STEADY_CALLER)
        for number in range(max(1, int(seconds / _INTERVAL)))
    ]
    return (*[flood] * (_FLOOD_IMAGES_PER_GPU * gpus), *steady)


def has_callers(trace: Sequence[Arrival]) -> bool:
    """Return whether a trace has several callers."""
    return len({arrival.caller for arrival in trace}) > 1


def compare_fairness(trace: Sequence[Arrival], gpus: int) -> list[CallerSummary]:
    """Run a trace under each service, on all GPUs, split by the work of each stage."""
    start = split_by_work(work_of(trace, GpuSpeed()), gpus)
    runs = {
        service: Cluster(
            SIZE,
            GpuSpeed(),
            route_by_owed_work(),
            None,
            start,
            load_seconds=LOAD_SECONDS,
            ingresses=ingresses,
            fair=fair,
        ).run(trace)
        for service, (fair, ingresses) in SERVICES.items()
    }
    summaries = []
    for service, run in runs.items():
        throughput = relative_throughput(run, runs[UNFAIR], trace, start)
        for caller in sorted({arrival.caller for arrival in trace}):
            images = [image for image in run.finished if image.arrival.caller == caller]
            latencies = sorted(image.seconds for image in images)
            end = max(image.arrival.at + image.seconds for image in images)
            p50, p95 = percentile(latencies, 0.5), percentile(latencies, 0.95)
            summaries.append(CallerSummary(service, caller, len(images), p50, p95, end, throughput))
    return summaries


def relative_throughput(
    run: SimulationResult,
    other: SimulationResult,
    trace: Sequence[Arrival],
    replicas: Mapping[Stage, int],
) -> float | None:
    """Return the work that one run of a trace had done, as a share of what another had.

    It is the work of the busiest stage, in GPU-seconds of full batches: from when both runs have
    done their first image, since the last stage begins idle, to the last moment at which both have
    images enough to fill the queues of all replicas. None if there is no such time.
    """
    full = max_queued_images(SIZE.images) * sum(replicas.values())
    began = max(
        min(image.arrival.at + image.seconds for image in each.finished) for each in (run, other)
    )
    points = [
        (point, another)
        for point, another in zip(run.timeline, other.timeline, strict=False)
        if point.at >= began and min(point.images, another.images) >= full
    ]
    if len(points) < 2:
        return None
    start, end = points[0], points[-1]
    since = (image for image in trace if start[0].at < image.at <= end[0].at)
    arrived = work_of(since, GpuSpeed())

    def done(number: int, stage: Stage) -> float:
        return arrived[stage] + start[number].owed[stage] - end[number].owed[stage]

    busiest = max(replicas, key=lambda stage: done(1, stage) / replicas[stage])
    return done(0, busiest) / done(1, busiest)
