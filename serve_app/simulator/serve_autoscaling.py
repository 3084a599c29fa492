"""How Ray Serve scales a deployment by itself: by the requests under way, looked back upon.

Written after `autoscaling_policy.py`, `_private/autoscaling_state.py` and `_private/router.py` of
Ray 2.60. Knows no work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.cluster import Scaler, StageObservation

_RECORDED = 0.2  # of the seconds looked back upon, those from one count to the next, at most


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The settings of an `AutoscalingConfig`, by Serve's defaults; all but the first in seconds."""

    target_ongoing_requests: float = 2.0
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0
    look_back: float = 30.0
    push: float = 10.0  # metrics_interval_s


@dataclass(slots=True)
class _Deployment:
    """What Serve keeps of one, from look to look."""

    settings: Autoscaling
    target: int
    counts: list[tuple[float, int]] = field(default_factory=list)  # when, and how many requests
    known: list[tuple[float, int]] = field(default_factory=list)  # the same, as pushed last
    pushed: float = 0.0
    since: float | None = None  # when more, or fewer, began to be wanted
    more: bool = False  # which of the two

    def count(self, requests: int, now: float) -> None:
        """So many are under way: counted once in a while, and known when they are pushed."""
        settings = self.settings
        apart = min(_RECORDED * settings.look_back, settings.push)
        if not self.counts or now >= self.counts[-1][0] + apart - 1e-9:
            self.counts.append((now, requests))
        if now >= self.pushed + settings.push - 1e-9:
            self.counts = [one for one in self.counts if one[0] >= now - settings.look_back]
            self.known, self.pushed = list(self.counts), now

    def mean(self, now: float) -> float:
        """Requests under way, as known: a mean over the time looked back upon."""
        ends = [at for at, _ in self.known[1:]] + [now]
        area = sum(n * (end - at) for (at, n), end in zip(self.known, ends, strict=True))
        span = now - self.known[0][0]
        return area / span if span else self.known[-1][1]

    def steer(self, least: int, most: int, now: float) -> None:
        """The target is what is wanted, if as many more, or fewer, were wanted for the delay."""
        if not self.known:
            return
        wanted = ceil(self.mean(now) / self.settings.target_ongoing_requests - 1e-9)
        wanted = min(most, max(least, wanted))
        if wanted == self.target:
            self.since = None
            return
        more = wanted > self.target
        if self.since is None or more is not self.more:
            self.since, self.more = now, more
        delay = self.settings.upscale_delay if more else self.settings.downscale_delay
        if now >= self.since + delay - 1e-6:
            self.target, self.since = wanted, None


def scale_by_requests(most: Mapping[Stage, int], settings: Autoscaling) -> Scaler:
    """A replica for every so many requests under way, each stage by itself and up to its most:
    where more are wanted than there are GPUs, who asks first has them."""
    deployments = dict[Stage, _Deployment]()

    def scale(now: float, seen: Mapping[Stage, StageObservation]) -> Mapping[Stage, int]:
        for stage, one in seen.items():
            kept = deployments.setdefault(stage, _Deployment(settings, one.look.replicas))
            kept.count(one.requests, now)
            kept.steer(one.look.min_replicas, most[stage], now)
        return {stage: kept.target for stage, kept in deployments.items()}

    return scale
