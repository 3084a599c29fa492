"""`Measurement`: what a system made of one load."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from serve_app.bench.serve.load import LoadResult
from serve_app.simulator.summary import percentile


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a system made of one load. All times are in seconds, those of requested pictures."""

    requests: int
    seconds: float  # from the first request to the last answer
    times: tuple[tuple[int, float], ...]  # steps and latency of each picture
    errors: Mapping[str, int]  # by kind

    @classmethod
    def of(cls, result: LoadResult) -> Self:
        """Return what a load's answers come to."""
        good = [answer for answer in result.answers if answer.is_ok]
        bad = Counter(answer.outcome for answer in result.answers if not answer.is_ok)
        times = tuple((answer.request.steps, answer.seconds) for answer in good)
        return cls(len(result.answers), result.seconds, times, bad)

    @property
    def throughput(self) -> float:
        """Pictures per second."""
        return len(self.times) / self.seconds

    @property
    def in_time(self) -> float:
        """The share of the requests that got their picture before they were given up."""
        return len(self.times) / self.requests

    @property
    def mean(self) -> float:
        """Mean latency."""
        return fmean(seconds for _, seconds in self.times) if self.times else 0.0

    def latency(self, share: float) -> float:
        """Return a percentile of the latencies."""
        return percentile(sorted(seconds for _, seconds in self.times), share)

    def latency_per_step(self, share: float) -> float:
        """Return a percentile of the latencies, each divided by the requested steps."""
        return percentile(sorted(seconds / steps for steps, seconds in self.times), share)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and the times from which they come."""
        return {
            "requests": self.requests,
            "seconds": self.seconds,
            "throughput": self.throughput,
            "inTime": self.in_time,
            "mean": self.mean,
            "p50": self.latency(0.5),
            "p95": self.latency(0.95),
            "p95PerStep": self.latency_per_step(0.95),
            "errors": dict(self.errors),
            "times": [list(pair) for pair in self.times],
        }
