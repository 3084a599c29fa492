"""More is requested than the GPUs can do: what admission makes of it, on three traces.

Goodput is the work of the images that are done before their deadline, as a share of what full
batches of the busiest stage could do in the same time. It counts from when images are done as fast
as they ever will be, until the requests end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Self

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.diffusion.sample import new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.comparison import split_by_work, work_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.replica import SimSample
from serve_app.simulator.result import SimulationResult
from serve_app.simulator.scenario import draw_with_load
from serve_app.simulator.traces import WORKLOADS, Arrival, RequestMix, Workload

OVERLOAD = "overload"  # the trace's name
_ROUNDS = 4  # of adjusting a trace's rate
_SPEED = GpuSpeed()
# Every step takes as long as a full one, so that the capacity does not depend on what is requested.
_SIZE = BatchSize(4, (8,))
# Images that base begins and the refiner ends, each with half of the work.
_EQUAL_IMAGES = RequestMix((30,), ((1024, 1024),), (6.9,), (0.5,), heavy=0.0)
_STEADY = Workload(lambda at: 1.0, lambda at: _EQUAL_IMAGES)


@dataclass(frozen=True, slots=True)
class OverloadCase:
    """A number of GPUs, and requests for more than they can do."""

    requests: str  # what is requested, in words
    workload: Workload
    gpus: int
    load: float  # as a share of what full batches of the busiest stage could do
    seconds: float  # for which it lasts
    warm_up: float  # seconds until images are done as fast as they ever will be
    timeout: tuple[float, float]  # that callers allow: these times the isolated seconds, plus these
    refused_return: bool = False  # once, each after its own Retry-After

    @property
    def title(self) -> str:
        """The case in words."""
        return f"{self.requests}, {self.gpus} GPUs"


STEADY_CASE = OverloadCase("5x in 15 s", _STEADY, 4, 5.0, 120.0, 10.0, (0.0, 15.0))
LARGE_CASE = OverloadCase("1.5x", WORKLOADS["steady"], 256, 1.5, 240.0, 120.0, (3.0, 10.0))
BURST_CASE = OverloadCase(
    "30 s of 5x in 15 s", _STEADY, 4, 5.0, 30.0, 10.0, (0.0, 15.0), refused_return=True
)
CASES = (STEADY_CASE, BURST_CASE, LARGE_CASE)


@dataclass(frozen=True, slots=True)
class Returners:
    """Those who were sent away, and came back once."""

    count: int
    accepted: int

    @classmethod
    def between(cls, start: float, end: float, result: SimulationResult) -> Self:
        """Return those who came back between two times, in seconds.

        Whoever is refused a deadline that can't be met has no reason to come back.
        """
        sent_away = [image for image in result.refused if image.retry_after and not image.returned]
        came = [image.arrival.at + image.retry_after for image in sent_away]
        again = [image.arrival.at for image in result.refused if image.returned]
        count = sum(start <= at < end for at in came)
        return cls(count, count - sum(start <= at < end for at in again))

    @property
    def share(self) -> float:
        """The share of them that was accepted; 1 if none came."""
        return self.accepted / self.count if self.count else 1.0


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """What became of the images of a case."""

    case: OverloadCase
    images: int
    goodput: float  # a share of the capacity
    refused: float  # the share of all that were requested
    late: int  # given up, because the deadline could not be met any more
    wasted: int  # of these, the images that had cost steps
    returned_meanwhile: Returners  # while the requests lasted
    returned_later: Returners


def run_case(case: OverloadCase, seed: int, size: BatchSize = _SIZE) -> OverloadResult:
    """Run a case and return what became of its images, on replicas with batches of a size.

    The requests, their deadlines and the capacity are those of batches whose every step has the
    lanes of a full one.
    """
    trace, replicas = _draw(case, seed)
    result = Cluster(
        size,
        _SPEED,
        route_by_owed_work(),
        None,
        replicas,
        limits=AdmissionLimits(open_requests=len(trace)),
        refused_return=case.refused_return,
    ).run(trace)
    return OverloadResult(
        case,
        len(trace),
        _goodput(result, case, replicas),
        sum(not image.returned for image in result.refused) / len(trace),
        len(result.late),
        sum(image.begun for image in result.late),
        Returners.between(0.0, case.seconds, result) if case.refused_return else Returners(0, 0),
        Returners.between(case.seconds, inf, result) if case.refused_return else Returners(0, 0),
    )


def _draw(case: OverloadCase, seed: int) -> tuple[list[Arrival], dict[Stage, int]]:
    """Return the trace of a case, with deadlines, and the replicas of each stage."""

    def load_of(trace: Sequence[Arrival]) -> float:
        return _load(trace, _split(trace, case.gpus), case.seconds)

    trace = draw_with_load(
        case.workload, case.load, case.gpus, case.seconds, seed, load_of, rounds=_ROUNDS
    )
    times, plus = case.timeout
    timed = [
        replace(arrival, timeout_s=times * _isolated_seconds(arrival) + plus) for arrival in trace
    ]
    return timed, _split(trace, case.gpus)


def _split(trace: Sequence[Arrival], gpus: int) -> dict[Stage, int]:
    return split_by_work(work_of(trace, _SPEED, _SIZE), gpus)


def _load(images: Iterable[Arrival], replicas: Mapping[Stage, int], seconds: float) -> float:
    """Return the work of the busiest stage, as a share of what full batches do in `seconds`."""
    work = work_of(images, _SPEED, _SIZE)
    return max(work[stage] / replicas[stage] / seconds for stage in Stage)


def _isolated_seconds(arrival: Arrival) -> float:
    spec, schedule, segments = image_of(arrival, refiner=True)
    sample: SimSample = new_sample("", spec, schedule, segments[0].stage)
    return _SPEED.image_seconds(sample, segments, _SIZE)


def _goodput(result: SimulationResult, case: OverloadCase, replicas: Mapping[Stage, int]) -> float:
    done = [
        image.arrival
        for image in result.finished
        if case.warm_up <= image.arrival.at + image.seconds < case.seconds
    ]
    return _load(done, replicas, case.seconds - case.warm_up)
