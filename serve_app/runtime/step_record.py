"""A step of the engine as others hear of it: who stepped together, on how many rows, how long.

Knows no engine and no meter.
"""

from dataclasses import dataclass

import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import Plan


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One UNet call of a batch."""

    stage: Stage
    ids: tuple[str, ...]  # of the samples
    rows: int  # theirs; padding is no work that anybody asked for
    lanes: int  # with padding
    began: float  # by the engine's clock, seconds
    seconds: float

    @classmethod
    def of(cls, plan: Plan[torch.Tensor], began: float, seconds: float) -> "StepRecord":
        """The turn that a plan of steps came to."""
        return cls(
            plan.samples[0].stage,
            tuple(sample.id for sample in plan.samples),
            sum(sample.spec.rows for sample in plan.samples),
            plan.lanes,
            began,
            seconds,
        )
