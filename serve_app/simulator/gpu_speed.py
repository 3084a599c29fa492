"""Seconds that turns take on a pretended GPU: the one thing of a simulation that is made up.

Knows no queues. By default a GPU does so many TFLOP a second, with the work of SDXL's own networks;
a table of measured seconds may say otherwise for turns that it knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.cost_model import decode_tflop, step_tflop
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.step_scheduler import BatchSize, Plan, WorkKind


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """A kind of GPU."""

    tflops: float = 400.0  # at work in a UNet: half of what an H200 does in a plain product
    vae_tflops: float = 400.0
    turn: float = 0.002  # seconds of every turn that are no arithmetic
    prompt: float = 0.004  # seconds to encode one
    steps: Mapping[tuple[Stage, int, int, int], float] = field(
        default_factory=dict  # seconds of a step, by stage, width, height and lanes
    )

    def step(self, stage: Stage, width: int, height: int, lanes: int) -> float:
        """Seconds of one UNet call."""
        known = self.steps.get((stage, width, height, lanes))
        if known is not None:
            return known
        return self.turn + step_tflop(stage, width, height, lanes) / self.tflops

    def decode(self, width: int, height: int) -> float:
        """Seconds to turn latents into a picture."""
        return self.turn + decode_tflop(width, height) / self.vae_tflops

    def turn_seconds(self, plan: Plan[Any]) -> float:
        """Seconds of a planned turn."""
        first = plan.samples[0]
        spec = first.spec
        if plan.work is WorkKind.STEP:
            return self.step(first.stage, spec.width, spec.height, plan.lanes)
        if plan.work is WorkKind.DECODE:
            return self.decode(spec.width, spec.height)
        return self.prompt

    def amortized_seconds(self, sample: Sample[Any], leg: StageSegment, size: BatchSize) -> float:
        """Seconds of a replica's time that a leg comes to where its batches are full."""
        spec = sample.spec
        steps = max(0, leg.stop - sample.index)
        whole = self.step(leg.stage, spec.width, spec.height, size.rows)
        rest = self.prompt + (self.decode(spec.width, spec.height) if leg.last else 0.0)
        return steps * whole / size.images + rest

    def amortized_by_segment(
        self, sample: Sample[Any], legs: tuple[StageSegment, ...], size: BatchSize
    ) -> tuple[float, ...]:
        """The share of each leg of an image that begins with the first."""
        shares = []
        for leg in legs:
            shares.append(self.amortized_seconds(sample, leg, size))
            sample = replace(sample, index=max(sample.index, leg.stop))
        return tuple(shares)

    def isolated_seconds(
        self, spec: ImageSpec, legs: tuple[StageSegment, ...], start: int, size: BatchSize
    ) -> float:
        """Seconds that an image takes on replicas that do nothing else."""
        seconds, index = 0.0, start
        for leg in legs:
            steps = max(0, leg.stop - index)
            seconds += self.prompt + steps * self.step(
                leg.stage, spec.width, spec.height, size.rows
            )
            index = max(index, leg.stop)
        return seconds + self.decode(spec.width, spec.height)
