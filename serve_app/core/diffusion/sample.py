"""`Sample`: a spec in flight, and the legs of its way through the stages.

Knows no tensors (latents are whatever the runtime puts there), no replicas and no clock.
Nothing here changes a sample: every function returns the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.schedule import Schedule
from serve_app.core.diffusion.spec import ImageSpec, Lora, Stage

M = TypeVar("M")
BatchKey = tuple[int | str | Lora, ...]
L = TypeVar("L")  # latents: torch on a device, numpy on the wire, floats in a proof


@dataclass(frozen=True, slots=True)
class Sample(Generic[L]):
    """One image in flight: all that is needed to continue it, anywhere, to the same bytes.

    `source` holds a base image's RGB bytes until it has become latents. `draws` counts the latent
    shaped draws taken from the seed's generator, so that a resumed sample draws what comes next.
    `profile` names the numeric profile its stage began it under; None before that. `chunks` is how
    long its prompts are to the stage that conditioned it last. `warnings` are for its asker.
    """

    id: str
    spec: ImageSpec
    schedule: Schedule
    stage: Stage
    index: int
    latents: L | None = None  # (4, h/8, w/8)
    solver_state: tuple[
        L, ...
    ] = ()  # what the solver remembers of earlier steps, each of that shape
    noise_draws: int = 0
    inputs: ImageInputs = NO_INPUTS
    profile: str | None = None
    chunks: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The checkpoint that steps it; "" at the refiner, which is one for all."""
        return self.spec.model if self.stage is Stage.BASE else ""

    @property
    def active_loras(self) -> tuple[Lora, ...]:
        """What its model wears for it, in an order of their own: sums of floats know their order.
        The refiner wears nothing: a LoRA was trained on base."""
        if self.stage is not Stage.BASE:
            return ()
        return tuple(sorted(lora for lora in self.spec.loras if lora.weight))

    @property
    def batch_key(self) -> BatchKey:
        """What is alike in samples that step together, and the only thing that must be: latent
        height and width, chunks, the model, and what it wears."""
        return *self.spec.latent_shape, self.chunks, self.model, *self.active_loras


@dataclass(frozen=True, slots=True)
class StageSegment:
    """A stretch of the schedule that one stage walks: up to `stop`, and then decodes if `last`."""

    stage: Stage
    stop: int
    last: bool


def new_sample(
    id: str,
    spec: ImageSpec,
    schedule: Schedule,
    stage: Stage,
    inputs: ImageInputs = NO_INPUTS,
) -> Sample[L]:
    """The sample before its first step. Raises `ValueError` when source and strength disagree."""
    init_image = inputs.init_image
    if (init_image is None) != (spec.strength is None):
        raise ValueError("a base image needs a strength, and a strength a base image")
    if init_image is not None and len(init_image) != spec.width * spec.height * 3:
        raise ValueError("the base image has another size than the spec")
    return Sample(id, spec, schedule, stage, index=schedule.start_index, inputs=inputs)


def stage_segments(
    schedule: Schedule, handoff: float, *, refiner: bool
) -> tuple[StageSegment, ...]:
    """The legs of an image, in order; the last one decodes.

    Without a refiner, or with handoff 1, base walks it all. A base leg without steps is left out;
    a refiner leg without steps stays, since the last stage decodes, as in diffusers.
    """
    end = len(schedule)
    if not refiner or handoff >= 1:
        return (StageSegment(Stage.BASE, end, last=True),)
    last = StageSegment(Stage.REFINER, end, last=True)
    if schedule.handoff_index <= schedule.start_index:
        return (last,)
    return (StageSegment(Stage.BASE, schedule.handoff_index, last=False), last)


def with_latents(sample: Sample[L], latents: L, noise_draws: int) -> Sample[L]:
    """The sample with its first latents; the base image, if any, is no longer carried."""
    return replace(sample, latents=latents, noise_draws=noise_draws, inputs=NO_INPUTS)


def after_step(
    sample: Sample[L], latents: L, solver_state: tuple[L, ...], noise_draws: int
) -> Sample[L]:
    """The same sample one step on."""
    return replace(
        sample,
        index=sample.index + 1,
        latents=latents,
        solver_state=solver_state,
        noise_draws=noise_draws,
    )


def with_profile(sample: Sample[L], profile: str) -> Sample[L]:
    """The sample, bound to the numeric profile that makes its bits."""
    return replace(sample, profile=profile)


def with_model(sample: Sample[L], model: str) -> Sample[L]:
    """The sample, bound to a checkpoint."""
    return replace(sample, spec=replace(sample.spec, model=model))


def with_prompt_info(sample: Sample[L], chunks: int, warnings: tuple[str, ...]) -> Sample[L]:
    """The sample, conditioned by so many chunks; every warning is carried once."""
    known = dict.fromkeys((*sample.warnings, *warnings))
    return replace(sample, chunks=chunks, warnings=tuple(known))


def map_latents(sample: Sample[L], convert: Callable[[L], M]) -> Sample[M]:
    """The same sample with its latents in another form, made by `carry`: onto the wire and back."""
    return Sample(
        id=sample.id,
        spec=sample.spec,
        schedule=sample.schedule,
        stage=sample.stage,
        index=sample.index,
        latents=None if sample.latents is None else convert(sample.latents),
        solver_state=tuple(map(convert, sample.solver_state)),
        noise_draws=sample.noise_draws,
        inputs=sample.inputs,
        profile=sample.profile,
        chunks=sample.chunks,
        warnings=sample.warnings,
    )


def for_stage(sample: Sample[L], stage: Stage) -> Sample[L]:
    """The sample at the door of another stage, whose solver starts without memory."""
    return replace(sample, stage=stage, solver_state=(), profile=None)
