"""One caller's flood beside another's steady requests, with and without fair shares."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.simulator.cluster import Cluster
from serve_app.simulator.comparison import LOAD_SECONDS, SIZE, split_by_work, work_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival

FLOOD = "flood"
FLOODING, STEADY_CALLER = "flooding", "steady"
_STEPS, _HANDOFF = 30, 0.8
_FLOOD_IMAGES_PER_GPU = 50
_INTERVAL = 2.0  # seconds between two images of the steady caller
SERVICES = {  # by name: whether it shares by callers, and its ingresses
    "fair shares": (True, 1),
    "fair shares, two ingresses": (True, 2),
    "by urgency alone": (False, 1),
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
    summaries = []
    for service, (fair, ingresses) in SERVICES.items():
        cluster = Cluster(
            SIZE,
            GpuSpeed(),
            route_by_owed_work(),
            None,
            start,
            load_seconds=LOAD_SECONDS,
            ingresses=ingresses,
            fair=fair,
        )
        finished = cluster.run(trace).finished
        for caller in sorted({arrival.caller for arrival in trace}):
            images = [image for image in finished if image.arrival.caller == caller]
            latencies = sorted(image.seconds for image in images)
            end = max(image.arrival.at + image.seconds for image in images)
            p50, p95 = percentile(latencies, 0.5), percentile(latencies, 0.95)
            summaries.append(CallerSummary(service, caller, len(images), p50, p95, end))
    return summaries
