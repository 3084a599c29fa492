"""Policies compared: routing on one trace; scaling by several settings on several traces.

Runs that compare scaling share the router, the places, the GPUs and the traces, and differ only in
the number of replicas. The settings were chosen on traces of other seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median

from serve_app.core.capacity.autoscaler import ScalingTargets, allocate_gpus
from serve_app.core.diffusion.sample import new_sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.image import image_of
from serve_app.simulator.policies import (
    route_by_owed_work,
    route_by_requests,
    scale_by_owed_work,
)
from serve_app.simulator.replica import SimSample
from serve_app.simulator.result import SimulationResult, TimelinePoint
from serve_app.simulator.serve_autoscaling import RequestAutoscaling, scale_by_requests
from serve_app.simulator.summary import Summary, summarize
from serve_app.simulator.traces import Arrival

SIZE = BatchSize(4, (2, 4, 6, 8))
LOAD_SECONDS = 20.0  # until a new replica is ready
_GPUS_PER_MIN_REPLICA = 16  # each stage has at least one replica for this many GPUs
_GPUS_PER_FIRST_REPLICA = 3  # a trace begins with one replica for this many GPUs
OWED = "owed work"
TUNED = "requests, tuned"
PROMPT = "requests, each second"  # reported as soon as they are counted
DEFAULT = "requests, Serve's own"  # delays
ALL = "all GPUs"
_TUNED_SETTINGS = ((3.0, 15.0), (2.0, 5.0), (1.5, 15.0), (1.0, 15.0))  # target, downscale delay
_PROMPT_SETTINGS = ((3.0, 30.0), (2.0, 30.0))
_REPORTED_AT_ONCE = {"look_back_s": 10.0, "report_interval_s": 1.0}


@dataclass(frozen=True, slots=True)
class PolicySetting:
    """One way to scale."""

    family: str
    name: str
    policy: ScalingTargets | RequestAutoscaling | None  # None: all GPUs, all the time


SETTINGS = (  # those that no other setting beat in both measures, on traces of other seeds
    *(
        PolicySetting(OWED, f"drain in {drain:g} s", ScalingTargets(target_drain_s=drain))
        for drain in (5.0, 7.0, 10.0)
    ),
    *(
        PolicySetting(
            TUNED, f"{target:g} each, {delay:g} s", RequestAutoscaling(target, 0.0, delay)
        )
        for target, delay in _TUNED_SETTINGS
    ),
    *(
        PolicySetting(
            PROMPT,
            f"{target:g} each, {delay:g} s",
            RequestAutoscaling(target, 0.0, delay, **_REPORTED_AT_ONCE),
        )
        for target, delay in _PROMPT_SETTINGS
    ),
    PolicySetting(DEFAULT, "2 each", RequestAutoscaling()),
    PolicySetting(ALL, "", None),
)
CHOSEN = SETTINGS[0]  # the service's default targets


@dataclass(frozen=True, slots=True)
class ComparisonRun:
    """One trace under one setting."""

    setting: PolicySetting
    gpus: int
    seconds: float
    trace: tuple[Arrival, ...]

    def run(self) -> tuple[Summary, tuple[TimelinePoint, ...]]:
        """Return the numbers of the run, and its timeline."""
        result = self._cluster().run(self.trace)
        return summarize(result, self.seconds), result.timeline

    def _cluster(self) -> Cluster:
        gpus, policy = self.gpus, self.setting.policy
        work = work_of(self.trace, GpuSpeed())
        split, scale = split_by_work(work, gpus), None
        if isinstance(policy, ScalingTargets):
            scale = scale_by_owed_work(gpus, policy)
        elif policy is not None:
            # A fixed split of the GPUs: without one, the stages take them from each other and do
            # worse.
            scale = scale_by_requests(split, policy)
        start = split
        if scale is not None:
            start = split_by_work(work, max(2, gpus // _GPUS_PER_FIRST_REPLICA))
        return Cluster(
            size=SIZE,
            speed=GpuSpeed(),
            route=route_by_owed_work(),
            scale=scale,
            start=start,
            min_replicas={stage: max(1, gpus // _GPUS_PER_MIN_REPLICA) for stage in Stage},
            gpus=gpus,
            load_seconds=LOAD_SECONDS,
        )


@dataclass(frozen=True, slots=True)
class SettingResult:
    """What a setting achieved on all traces: medians, minima and maxima."""

    attained: float
    attained_range: tuple[float, float]
    gpu_hours: float
    gpu_hours_range: tuple[float, float]
    p95: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of every setting, by trace; and its timeline on the first trace."""

    summaries: Mapping[PolicySetting, Sequence[Summary]]
    timelines: Mapping[PolicySetting, Sequence[TimelinePoint]]

    def settings_of(self, family: str) -> list[PolicySetting]:
        """Return the settings of a family."""
        return [setting for setting in self.summaries if setting.family == family]

    def result(self, setting: PolicySetting) -> SettingResult:
        """Return what a setting achieved on all traces."""
        summaries = self.summaries[setting]
        attained = sorted(summary.attained for summary in summaries)
        hours = sorted(summary.gpu_hours for summary in summaries)
        return SettingResult(
            attained=median(attained),
            attained_range=(attained[0], attained[-1]),
            gpu_hours=median(hours),
            gpu_hours_range=(hours[0], hours[-1]),
            p95=median(summary.p95 for summary in summaries),
        )

    def points(self, family: str, trace: int | None = None) -> list[tuple[float, float]]:
        """Return the share of images in time and the GPU-hours of each setting of a family.

        They are those of one trace, or medians over all.
        """
        return self._points(self.settings_of(family), trace)

    def saved(self, family: str, trace: int | None = None) -> float:
        """Return the share of a family's GPU-hours that the chosen setting saves.

        The family's GPU-hours are those it needs to have as many images in time as the chosen
        setting. By medians, each of its settings is the same for all traces. On one trace, the
        settings that were best for that very trace count.
        """
        ((attained, hours),) = self._points([CHOSEN], trace)
        return 1 - hours / hours_for(attained, self.points(family, trace))

    def saved_by_trace(self, family: str) -> list[float]:
        """Return the share of a family's GPU-hours that is saved, for each trace."""
        return [self.saved(family, trace) for trace in range(len(self.summaries[CHOSEN]))]

    def _points(
        self, settings: Iterable[PolicySetting], trace: int | None = None
    ) -> list[tuple[float, float]]:
        chosen = [self.summaries[setting] for setting in settings]
        if trace is not None:
            chosen = [[summaries[trace]] for summaries in chosen]
        return [
            (
                median(summary.attained for summary in summaries),
                median(summary.gpu_hours for summary in summaries),
            )
            for summaries in chosen
        ]


def compare_scaling(traces: Sequence[Sequence[Arrival]], gpus: int, seconds: float) -> Comparison:
    """Run every setting on every trace, on all CPUs."""
    runs = [
        ComparisonRun(setting, gpus, seconds, tuple(trace))
        for setting in SETTINGS
        for trace in traces
    ]
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(ComparisonRun.run, runs))
    count = len(traces)
    by_setting = {
        setting: results[number * count : (number + 1) * count]
        for number, setting in enumerate(SETTINGS)
    }
    return Comparison(
        {setting: [summary for summary, _ in pairs] for setting, pairs in by_setting.items()},
        {setting: pairs[0][1] for setting, pairs in by_setting.items()},
    )


def compare_routing(trace: Sequence[Arrival], gpus: int, seed: int) -> dict[str, SimulationResult]:
    """Run a trace under both routers, on all GPUs, split by the work of each stage."""
    start = split_by_work(work_of(trace, GpuSpeed()), gpus)
    routers = {OWED: route_by_owed_work(), "two choices": route_by_requests(Random(seed))}
    return {
        name: Cluster(SIZE, GpuSpeed(), route, None, start, load_seconds=LOAD_SECONDS).run(trace)
        for name, route in routers.items()
    }


def hours_for(attained: float, points: Iterable[tuple[float, float]]) -> float:
    """Return the GPU-hours for a share of images in time, interpolated between settings.

    Only the settings count that no other beats in both measures. Beyond the first or the last of
    them, the nearest one's GPU-hours are returned.
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    best.reverse()
    for (low, low_hours), (high, high_hours) in pairwise(best):
        if low <= attained < high:
            return low_hours + (high_hours - low_hours) * (attained - low) / (high - low)
    return best[0][1] if attained < best[0][0] else best[-1][1]


def work_of(
    trace: Iterable[Arrival], speed: GpuSpeed, size: BatchSize = SIZE
) -> dict[Stage, float]:
    """Return the GPU-seconds of a trace by stage, in full batches."""
    work = dict.fromkeys(Stage, 0.0)
    for arrival in trace:
        spec, schedule, segments = image_of(arrival, refiner=True)
        sample: SimSample = new_sample("", spec, schedule, segments[0].stage)
        shares = speed.amortized_by_segment(sample, segments, size)
        for segment, share in zip(segments, shares, strict=True):
            work[segment.stage] += share
    return work


def split_by_work(work: Mapping[Stage, float], gpus: int) -> dict[Stage, int]:
    """Split a number of GPUs between the stages by their work; each gets at least one."""
    weights = {stage: max(1, round(1000 * seconds)) for stage, seconds in work.items()}
    return allocate_gpus(weights, dict.fromkeys(Stage, 1), gpus)
