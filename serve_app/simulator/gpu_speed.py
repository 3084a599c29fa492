"""The seconds that turns take on a simulated GPU: the only made-up numbers of a simulation.

By default a GPU does a fixed number of TFLOP per second, on the work of SDXL's own networks. A
table of measured seconds overrides that for the steps that it lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.cost_model import decode_tflop, step_tflop
from serve_app.core.capacity.replica_load import KeyLoad
from serve_app.core.diffusion.sample import Sample, StageSegment, for_stage, steps_until
from serve_app.core.diffusion.spec import Stage
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

    def step(
        self, stage: Stage, width: int, height: int, lanes: int, *, shallow: bool = False
    ) -> float:
        """Return the seconds of one UNet call; sizes are in pixels."""
        measured = None if shallow else self.step_seconds.get((stage, width, height, lanes))
        if measured is not None:
            return measured
        tflop = step_tflop(stage, width, height, lanes, shallow=shallow)
        return self.overhead_seconds + tflop / self.tflops

    def decode(self, width: int, height: int) -> float:
        """Return the seconds of decoding latents to an image of a size in pixels."""
        return self.overhead_seconds + decode_tflop(width, height) / self.vae_tflops

    def turn_seconds(self, plan: Plan[Any]) -> float:
        """Return the seconds of a planned turn."""
        first = plan.samples[0]
        spec = first.spec
        if plan.work is WorkKind.STEP:
            return self.step(
                first.stage, spec.width, spec.height, plan.lanes, shallow=first.is_shallow
            )
        if plan.work is WorkKind.DECODE:
            return self.decode(spec.width, spec.height)
        return self.prompt_seconds

    def amortized_seconds(
        self, sample: Sample[Any], segment: StageSegment, size: BatchSize
    ) -> float:
        """Return the seconds of a replica's time that a segment costs in full batches."""
        spec = sample.spec
        steps = self.steps(for_stage(sample, segment.stage), segment.stop, size, size.images)
        decode = self.decode(spec.width, spec.height) if segment.last else 0.0
        return steps / size.images + (self.prompt_seconds + decode)

    def steps(self, sample: Sample[Any], stop: int, size: BatchSize, images: int) -> float:
        """Return the seconds of the steps that a sample takes to a stop, in batches of `images`."""
        stage, width, height = sample.stage, sample.spec.width, sample.spec.height
        return sum(
            count
            * self.step(stage, width, height, size.lanes(images * kind.rows), shallow=kind.shallow)
            for kind, count in steps_until(sample, stop)
        )

    def key_load(self, sample: Sample[Any], steps: int, size: BatchSize) -> KeyLoad:
        """Return the load of no image yet whose steps are like the next ones of the sample."""
        full, alone = (
            self.steps(sample, sample.index + steps, size, images) / max(1, steps)
            for images in (size.images, 1)
        )
        return KeyLoad(0, 0, full, alone)

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
        sample: Sample[Any],
        segments: tuple[StageSegment, ...],
        size: BatchSize,
        images: int = 1,
    ) -> float:
        """Return the seconds that an image takes from its next step on.

        It steps in batches of `images`, or in full ones; 1: the replicas are idle.
        """
        seconds = 0.0
        for segment in segments:
            sample, together = for_stage(sample, segment.stage), min(images, size.images)
            seconds += self.prompt_seconds + self.steps(sample, segment.stop, size, together)
            sample = replace(sample, index=max(sample.index, segment.stop))
        return seconds + self.decode(sample.spec.width, sample.spec.height)
