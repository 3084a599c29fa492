"""Scaling by owed work against scaling by requests: each by several settings, on several traces.

Knows neither terminals nor pictures. All have the same router, places, GPUs and traces: only the
number of replicas differs. The settings were chosen on traces of other seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from serve_app.core.capacity.autoscaler import ScalingTargets, allocate_gpus
from serve_app.core.diffusion.sample import new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import BatchSize
from serve_app.simulator.cluster import Cluster, TimelinePoint, journey_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work, scale_by_owed_work
from serve_app.simulator.replica import SimSample
from serve_app.simulator.serve_autoscaling import Autoscaling, scale_by_requests
from serve_app.simulator.summary import Summary, summarize
from serve_app.simulator.traces import Arrival

SIZE = BatchSize(4, 8)
LOADING = 20.0  # seconds until a new replica is ready
_FLOOR = 16  # of so many GPUs, one is of each stage at least
_START = 3  # of so many GPUs, one has a replica when the trace begins
OWED = "owed work"
TUNED = "requests, tuned"
PROMPT = "requests, told at once"  # each second
DEFAULT = "requests, Serve's own"  # delays
ALL = "all GPUs"
_TUNED = ((3.0, 15.0), (2.0, 5.0), (1.5, 15.0), (1.0, 15.0))  # targets and downscale delays
_TOLD = ((3.0, 30.0), (2.0, 30.0))
_AT_ONCE = {"look_back": 10.0, "push": 1.0}


@dataclass(frozen=True, slots=True)
class PolicySetting:
    """A way to scale."""

    family: str
    name: str
    way: ScalingTargets | Autoscaling | None  # None: all GPUs, all the time


SETTINGS = (  # those that no other beat in both on traces of other seeds
    *(
        PolicySetting(OWED, f"wait {wait:g} s", ScalingTargets(target_drain_s=wait))
        for wait in (5.0, 7.0, 10.0)
    ),
    *(
        PolicySetting(TUNED, f"{each:g} each, {down:g} s", Autoscaling(each, 0.0, down))
        for each, down in _TUNED
    ),
    *(
        PolicySetting(
            PROMPT, f"{each:g} each, {down:g} s", Autoscaling(each, 0.0, down, **_AT_ONCE)
        )
        for each, down in _TOLD
    ),
    PolicySetting(DEFAULT, "2 each", Autoscaling()),
    PolicySetting(ALL, "", None),
)
CHOSEN = SETTINGS[0]  # by the aims that the service has


@dataclass(frozen=True, slots=True)
class ComparisonRun:
    """One trace under one setting."""

    setting: PolicySetting
    gpus: int
    seconds: float
    trace: tuple[Arrival, ...]

    def run(self) -> tuple[Summary, tuple[TimelinePoint, ...]]:
        """What became of it, and how things stood meanwhile."""
        ran = self._cluster().run(self.trace)
        return summarize(ran, self.seconds), ran.timeline

    def _cluster(self) -> Cluster:
        gpus, way = self.gpus, self.setting.way
        work = work_of(self.trace, GpuSpeed())
        split, scale = shared_by_work(work, gpus), None
        if isinstance(way, ScalingTargets):
            scale = scale_by_owed_work(gpus, way)
        elif way is not None:  # the split that was best: two stages that may have all fare worse
            scale = scale_by_requests(split, way)
        start = split if scale is None else shared_by_work(work, max(2, gpus // _START))
        least = {stage: max(1, gpus // _FLOOR) for stage in Stage}
        route = route_by_owed_work()
        return Cluster(SIZE, GpuSpeed(), route, scale, start, least, gpus, loading=LOADING)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of every setting, by trace; and how things stood in the first trace."""

    outcomes: Mapping[PolicySetting, Sequence[Summary]]
    moments: Mapping[PolicySetting, Sequence[TimelinePoint]]

    def points(self, family: str, trace: int | None = None) -> list[tuple[float, float]]:
        """The share of images in time and GPU-hours of each setting: in one trace, or medians."""
        return self._points([one for one in self.outcomes if one.family == family], trace)

    def saved(self, family: str, trace: int | None = None) -> float:
        """Of the GPU-hours that a family takes to have as many images in time as the chosen
        setting, the share that the chosen one does without. By medians each setting is one for all
        traces; in one trace the family has the settings that were best for that very one."""
        ((attained, hours),) = self._points([CHOSEN], trace)
        return 1 - hours / hours_for(attained, self.points(family, trace))

    def _points(
        self, settings: Iterable[PolicySetting], trace: int | None = None
    ) -> list[tuple[float, float]]:
        chosen = [self.outcomes[one] for one in settings]
        if trace is not None:
            chosen = [[outcomes[trace]] for outcomes in chosen]
        return [
            (median(one.attained for one in outcomes), median(one.gpu_hours for one in outcomes))
            for outcomes in chosen
        ]


def compare(traces: Sequence[Sequence[Arrival]], gpus: int, seconds: float) -> Comparison:
    """Every setting on every trace, on all the CPUs there are."""
    tasks = [
        ComparisonRun(setting, gpus, seconds, tuple(trace))
        for setting in SETTINGS
        for trace in traces
    ]
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(ComparisonRun.run, tasks))
    count = len(traces)
    by_setting = {
        setting: results[number * count : (number + 1) * count]
        for number, setting in enumerate(SETTINGS)
    }
    return Comparison(
        {setting: [outcome for outcome, _ in ran] for setting, ran in by_setting.items()},
        {setting: ran[0][1] for setting, ran in by_setting.items()},
    )


def hours_for(attained: float, points: Iterable[tuple[float, float]]) -> float:
    """GPU-hours for a share of images in time, on the lines between the best of some settings,
    which no other beats in both; of the nearest of them where none has so many, or so few."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    best.reverse()
    for (low, before), (high, after) in pairwise(best):
        if low <= attained < high:
            return before + (after - before) * (attained - low) / (high - low)
    return best[0][1] if attained < best[0][0] else best[-1][1]


def work_of(trace: Iterable[Arrival], costs: GpuSpeed) -> dict[Stage, float]:
    """GPU-seconds of a trace by stage, where all batches are full."""
    work = dict.fromkeys(Stage, 0.0)
    for arrival in trace:
        spec, schedule, legs = journey_of(arrival, refiner=True)
        sample: SimSample = new_sample("", spec, schedule, legs[0].stage)
        for leg, share in zip(legs, costs.amortized_by_segment(sample, legs, SIZE), strict=True):
            work[leg.stage] += share
    return work


def shared_by_work(work: Mapping[Stage, float], gpus: int) -> dict[Stage, int]:
    """A number of GPUs, shared out to the stages by the work of each: one each at least."""
    whole = {stage: max(1, round(1000 * part)) for stage, part in work.items()}
    return allocate_gpus(whole, dict.fromkeys(Stage, 1), gpus)
