"""How Ray Serve scales a deployment by itself: by a mean of its ongoing requests.

Written after `autoscaling_policy.py`, `_private/autoscaling_state.py` and `_private/router.py` of
Ray 2.60.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.observation import Scaler, StageObservation

_MAX_COUNT_INTERVAL = 0.2  # of the look-back period: the maximum from one count to the next


@dataclass(frozen=True, slots=True)
class RequestAutoscaling:
    """The settings of Serve's `AutoscalingConfig`, with Serve's defaults."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    report_interval_s: float = 10.0  # `metrics_interval_s`


@dataclass(slots=True)
class _Deployment:
    """What Serve remembers of a deployment from one decision to the next."""

    settings: RequestAutoscaling
    target: int
    counts: list[tuple[float, int]] = field(default_factory=list)  # times and ongoing requests
    reported: list[tuple[float, int]] = field(default_factory=list)  # the same, as last reported
    reported_at: float = 0.0
    since: float | None = None  # when more, or fewer, replicas began to be wanted
    upscaling: bool = False  # which of the two

    def count(self, requests: int, now: float) -> None:
        """Count the ongoing requests if a count is due, and report if a report is due."""
        settings = self.settings
        interval = min(_MAX_COUNT_INTERVAL * settings.look_back_s, settings.report_interval_s)
        if not self.counts or now >= self.counts[-1][0] + interval - 1e-9:
            self.counts.append((now, requests))
        if now >= self.reported_at + settings.report_interval_s - 1e-9:
            oldest = now - settings.look_back_s
            self.counts = [(at, number) for at, number in self.counts if at >= oldest]
            self.reported, self.reported_at = list(self.counts), now

    def mean(self, now: float) -> float:
        """Return the mean over time of the reported ongoing requests."""
        ends = [at for at, _ in self.reported[1:]] + [now]
        area = sum(n * (end - at) for (at, n), end in zip(self.reported, ends, strict=True))
        span = now - self.reported[0][0]
        return area / span if span else self.reported[-1][1]

    def update(self, min_replicas: int, max_replicas: int, now: float) -> None:
        """Set the target if more, or fewer, replicas were wanted for the whole delay."""
        if not self.reported:
            return
        wanted = ceil(self.mean(now) / self.settings.target_ongoing_requests - 1e-9)
        wanted = min(max_replicas, max(min_replicas, wanted))
        if wanted == self.target:
            self.since = None
            return
        upscaling = wanted > self.target
        if self.since is None or upscaling is not self.upscaling:
            self.since, self.upscaling = now, upscaling
        settings = self.settings
        delay = settings.upscale_delay_s if upscaling else settings.downscale_delay_s
        if now >= self.since + delay - 1e-6:
            self.target, self.since = wanted, None


def scale_by_requests(max_replicas: Mapping[Stage, int], settings: RequestAutoscaling) -> Scaler:
    """Return a scaler that gives each stage a replica for every few ongoing requests.

    Each stage scales by itself. If the stages together want more replicas than there are GPUs, the
    first to ask gets them.
    """
    deployments = dict[Stage, _Deployment]()

    def scale(now: float, observations: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        for stage, observation in observations.items():
            load = observation.load
            deployment = deployments.setdefault(stage, _Deployment(settings, load.replicas))
            deployment.count(observation.requests, now)
            deployment.update(load.min_replicas, max_replicas[stage], now)
        return {stage: deployment.target for stage, deployment in deployments.items()}

    return scale
