"""The seconds that turns take on a simulated GPU: the only made-up numbers of a simulation.

By default a GPU does a fixed number of TFLOP per second, on the work of SDXL's own networks. A
table of measured seconds overrides that for the steps that it lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.cost_model import decode_tflop, step_tflop
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """A kind of GPU."""

    tflops: float = 400.0  # TFLOP per second in a UNet: half of an H200's rate in a plain product
    vae_tflops: float = 400.0
    overhead_seconds: float = 0.002  # of every turn, besides arithmetic
    prompt_seconds: float = 0.004  # to encode one prompt
    step_seconds: Mapping[tuple[Stage, int, int, int], float] = field(
        default_factory=dict  # measured, by stage, width, height and lanes
    )

    def scaled(self, factor: float) -> "GpuSpeed":
        """Return the GPU on which every turn takes `factor` times as long."""
        return GpuSpeed(
            self.tflops / factor,
            self.vae_tflops / factor,
            self.overhead_seconds * factor,
            self.prompt_seconds * factor,
            {size: seconds * factor for size, seconds in self.step_seconds.items()},
        )

    def step(self, stage: Stage, width: int, height: int, lanes: int) -> float:
        """Return the seconds of one UNet call; sizes are in pixels."""
        measured = self.step_seconds.get((stage, width, height, lanes))
        if measured is not None:
            return measured
        return self.overhead_seconds + step_tflop(stage, width, height, lanes) / self.tflops

    def decode(self, width: int, height: int) -> float:
        """Return the seconds of decoding latents to an image of a size in pixels."""
        return self.overhead_seconds + decode_tflop(width, height) / self.vae_tflops

    def turn_seconds(self, plan: Plan[Any]) -> float:
        """Return the seconds of a planned turn."""
        first = plan.samples[0]
        spec = first.spec
        if plan.work is WorkKind.STEP:
            return self.step(first.stage, spec.width, spec.height, plan.lanes)
        if plan.work is WorkKind.DECODE:
            return self.decode(spec.width, spec.height)
        return self.prompt_seconds

    def amortized_seconds(
        self, sample: Sample[Any], segment: StageSegment, size: BatchSize
    ) -> float:
        """Return the seconds of a replica's time that a segment costs in full batches."""
        spec = sample.spec
        steps = max(0, segment.stop - sample.index)
        lanes = size.lanes(size.images * spec.rows)
        batch_step = self.step(segment.stage, spec.width, spec.height, lanes)
        decode = self.decode(spec.width, spec.height) if segment.last else 0.0
        return steps * batch_step / size.images + (self.prompt_seconds + decode)

    def amortized_by_segment(
        self, sample: Sample[Any], segments: tuple[StageSegment, ...], size: BatchSize
    ) -> tuple[float, ...]:
        """Return the amortized seconds of each segment of an image that begins with the first."""
        shares = []
        for segment in segments:
            shares.append(self.amortized_seconds(sample, segment, size))
            sample = replace(sample, index=max(sample.index, segment.stop))
        return tuple(shares)

    def image_seconds(
        self,
        spec: ImageSpec,
        segments: tuple[StageSegment, ...],
        start: int,
        size: BatchSize,
        images: int = 1,
    ) -> float:
        """Return the seconds that an image takes from the step `start` on.

        It steps in batches of `images`, or in full ones; 1: the replicas are idle.
        """
        seconds, index = 0.0, start
        lanes = size.lanes(min(images, size.images) * spec.rows)
        for segment in segments:
            steps = max(0, segment.stop - index)
            step = self.step(segment.stage, spec.width, spec.height, lanes)
            seconds += self.prompt_seconds + steps * step
            index = max(index, segment.stop)
        return seconds + self.decode(spec.width, spec.height)
