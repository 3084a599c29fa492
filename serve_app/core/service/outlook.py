"""`Outlook`: how far an image is, and when it will be done, for whoever waits for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.forecast import image_seconds, pending_work, steps_seconds
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where an image is. Before its first step it waits, behind `position` - 1 others.

    `wait` are the predicted seconds until it begins, and `eta` those until it is done; None while
    nothing is known of costs. `step` counts the steps that it has taken, of the request's.
    """

    stage: Stage
    step: int
    of: int
    position: int = 0  # 0: it has begun
    wait: float | None = None
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """The predicted seconds of an image that is at some step, were its device its own."""

    steps: float  # of all steps to come
    rest: float  # of everything else to come

    def at_pace(self, factor: float, since: float) -> float:
        """Return the seconds left, if steps take `factor` times as long.

        `since` are the seconds since it was known to be at this step.
        """
        return max(0.0, self.steps * factor - since) + self.rest


def time_left(
    sample: Sample[Any], segments: Sequence[StageSegment], costs: Mapping[Stage, CostTable]
) -> TimeLeft:
    """Return what an image still takes by the costs of each stage."""
    steps = total = 0.0
    for work in pending_work(sample, segments):
        own = costs[work.segment.stage]
        steps += steps_seconds(work.sample, work.segment.stop, own, 1)
        total += image_seconds([work], own, images=1)
    return TimeLeft(steps, total - steps)
