"""`Sample`: a spec in flight, and the segments that each stage runs of it.

No torch, no replicas, no clock: latents are whatever the runtime puts there. Samples are immutable:
every function returns a new one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.keys import BatchKey, ModelKey
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.diffusion.step_kind import StepKind, step_kind, step_kinds

M = TypeVar("M")
L = TypeVar("L")  # latents: torch on a device, numpy on the wire, floats in a proof


@dataclass(frozen=True, slots=True)
class Sample(Generic[L]):
    """One image in flight: everything needed to continue it anywhere, to the same bytes.

    `index` is the next step. `inputs` are those that the steps to come need. `noise_draws` counts
    the latents drawn from the seed's generator, so that a resumed sample draws the next one.
    `profile` names the numeric profile that its stage began with; None before that. `chunks` is the
    length of its prompts at the stage that encoded them last. `warnings` are for the `caller`, who
    decides when it steps and never what comes of it. `profiles` are those of the stages before.
    """

    id: str
    spec: ImageSpec
    schedule: Schedule
    stage: Stage
    index: int
    latents: L | None = None  # (4, h/8, w/8)
    solver_state: tuple[L, ...] = ()  # of earlier steps, such as denoised latents; same shape
    noise_draws: int = 0
    inputs: ImageInputs = NO_INPUTS
    profile: str | None = None
    chunks: int = 1
    warnings: tuple[str, ...] = ()
    caller: Caller = NO_CALLER
    profiles: tuple[tuple[Stage, str], ...] = ()

    @property
    def model_key(self) -> ModelKey:
        """The checkpoint that steps it at its stage."""
        name = self.spec.model if self.stage is Stage.BASE else self.spec.refiner
        return ModelKey(self.stage, name)

    @property
    def step(self) -> int:
        """How many of the request's steps it has taken, which a sampler may evaluate twice each."""
        return (self.index - self.schedule.start_index) // self.spec.sampler.nfe

    @property
    def needs_encoding(self) -> bool:
        """Whether its initial image must still become latents."""
        return self.latents is None and self.inputs.init_image is not None

    @property
    def active_extensions(self) -> tuple[ExtensionRef, ...]:
        """The extensions that its model applies, sorted: a sum of floats depends on its order.

        None at the refiner: extensions are made for base.
        """
        if self.stage is not Stage.BASE:
            return ()
        return tuple(sorted(ref for ref in self.spec.extensions if ref.weight))

    @property
    def step_kind(self) -> StepKind:
        """What its next step computes."""
        return step_kind(self.spec, self.schedule, self.stage, self.index)

    @property
    def rows(self) -> int:
        """The UNet rows of its next step."""
        return self.spec.rows if self.spec.guidance_interval is None else self.step_kind.rows

    @property
    def is_shallow(self) -> bool:
        """Whether its next step reuses deep features."""
        return self.spec.cache is not StepCache.OFF and self.step_kind.shallow

    @property
    def batch_key(self) -> BatchKey:
        """What is equal in all samples that step together; it may differ from step to step."""
        return self._batch_key(self.is_shallow)

    @property
    def usual_batch_key(self) -> BatchKey:
        """The batch key of most of its steps, by which it is placed: the same at every step."""
        return self._batch_key(self.spec.cache is not StepCache.OFF)

    def _batch_key(self, shallow: bool) -> BatchKey:
        return BatchKey(
            self.model_key,
            self.spec.latent_shape,
            self.chunks,
            self.active_extensions,
            shallow,
        )


@dataclass(frozen=True, slots=True)
class StageSegment:
    """The steps that one stage runs: up to `stop`, and then the decode if it is the last.

    `alone`: the first steps run in quarantine, because a replica died with the image; so many times
    the usual number of steps. `avoid` has the ids of replicas that should not get it. `sender` is
    the process that renews the sample's lease; "" without a lease. `suspicion` is what the sender
    knows against the sample (`core.service.suspicion`), which the replica keeps with its snapshots.
    `watched`: somebody watches, and wants previews.
    """

    stage: Stage
    stop: int
    last: bool
    alone: int = 0
    avoid: tuple[str, ...] = ()
    sender: str = ""
    suspicion: Any = field(default=None, compare=False)
    watched: bool = False


def new_sample(
    id: str,
    spec: ImageSpec,
    schedule: Schedule,
    stage: Stage,
    inputs: ImageInputs = NO_INPUTS,
    caller: Caller = NO_CALLER,
) -> Sample[L]:
    """Return a sample before its first step; raise `ValueError` if inputs and spec disagree."""
    inputs.check(spec)
    index = schedule.start_index
    return Sample(id, spec, schedule, stage, index, inputs=inputs, caller=caller)


def stage_segments(
    schedule: Schedule, handoff: float, *, refiner: bool
) -> tuple[StageSegment, ...]:
    """Return the segments of an image, in order; the last one decodes.

    Without a refiner, or with handoff 1, base runs every step. A base segment without steps is left
    out; a refiner segment without steps stays, since the last stage decodes, as in diffusers.
    """
    end = len(schedule)
    if not refiner or handoff >= 1:
        return (StageSegment(Stage.BASE, end, last=True),)
    last = StageSegment(Stage.REFINER, end, last=True)
    if schedule.handoff_index <= schedule.start_index:
        return (last,)
    return (StageSegment(Stage.BASE, schedule.handoff_index, last=False), last)


def plan_segments(
    config: NoiseConfig, spec: ImageSpec, *, refiner: bool
) -> tuple[Schedule, tuple[StageSegment, ...]]:
    """Return an image's schedule and its `stage_segments`. Raises `InvalidRequest`."""
    schedule = make_schedule(config, spec.sampler, spec.steps, spec.strength, spec.handoff)
    return schedule, stage_segments(schedule, spec.handoff, refiner=refiner)


def steps_until(sample: Sample[L], stop: int) -> Iterator[tuple[StepKind, int]]:
    """Yield the kinds of the steps that a sample takes to a stop: see `step_kinds`."""
    return step_kinds(sample.spec, sample.schedule, sample.stage, sample.index, stop)


def step_counts(sample: Sample[L], stop: int) -> Mapping[StepKind, int]:
    """Return how many steps of each kind a sample takes to a stop, in the order of the first."""
    counts = Counter[StepKind]()
    for kind, count in steps_until(sample, stop):
        counts[kind] += count
    return counts


def with_latents(sample: Sample[L], latents: L, noise_draws: int) -> Sample[L]:
    """Return the sample with its first latents, and with the inputs that its steps need."""
    inputs = sample.inputs.after_encoding()
    return replace(sample, latents=latents, noise_draws=noise_draws, inputs=inputs)


def after_step(
    sample: Sample[L], latents: L, solver_state: tuple[L, ...], noise_draws: int
) -> Sample[L]:
    """Return the sample after one more step."""
    return _with_tensors(sample, sample.index + 1, latents, solver_state, noise_draws)


def with_profile(sample: Sample[L], profile: str) -> Sample[L]:
    """Return the sample, bound to the numeric profile that decides its bits."""
    return replace(sample, profile=profile)


def with_model(sample: Sample[L], model: ModelKey) -> Sample[L]:
    """Return the sample, bound to the checkpoint that steps it at the key's stage."""
    if model.stage is Stage.BASE:
        return replace(sample, spec=replace(sample.spec, model=model.name))
    return replace(sample, spec=replace(sample.spec, refiner=model.name))


def with_prompt_info(sample: Sample[L], chunks: int, warnings: tuple[str, ...]) -> Sample[L]:
    """Return the sample with the length of its prompts, and new warnings added without doubles."""
    return with_warnings(replace(sample, chunks=chunks), *warnings)


def with_warnings(sample: Sample[L], *warnings: str) -> Sample[L]:
    """Return the sample with more warnings for its caller, without doubles."""
    merged = dict.fromkeys((*sample.warnings, *warnings))
    return replace(sample, warnings=tuple(merged))


def map_latents(sample: Sample[L], convert: Callable[[L], M]) -> Sample[M]:
    """Return the sample with latents and solver state converted, as to the host and back."""
    latents = None if sample.latents is None else convert(sample.latents)
    solver_state = tuple(map(convert, sample.solver_state))
    return _with_tensors(sample, sample.index, latents, solver_state, sample.noise_draws)


def _with_tensors(
    sample: Sample[L],
    index: int,
    latents: M | None,
    solver_state: tuple[M, ...],
    noise_draws: int,
) -> Sample[M]:
    """Return the sample with other tensors, at every step: `dataclasses.replace` is slower."""
    return Sample(
        id=sample.id,
        spec=sample.spec,
        schedule=sample.schedule,
        stage=sample.stage,
        index=index,
        latents=latents,
        solver_state=solver_state,
        noise_draws=noise_draws,
        inputs=sample.inputs,
        profile=sample.profile,
        chunks=sample.chunks,
        warnings=sample.warnings,
        caller=sample.caller,
        profiles=sample.profiles,
    )


def without_tensors(sample: Sample[L]) -> Sample[L]:
    """Return the sample of a finished image, without what only further steps would need."""
    return replace(sample, latents=None, solver_state=(), inputs=NO_INPUTS)


def for_stage(sample: Sample[L], stage: Stage) -> Sample[L]:
    """Return the sample at the start of the stage, whose solver has no state yet.

    The sample as it is, if it is at the stage already.
    """
    if stage is sample.stage:
        return sample
    profiles = stage_profiles(sample)
    return replace(sample, stage=stage, solver_state=(), profile=None, profiles=profiles)


def stage_profiles(sample: Sample[L]) -> tuple[tuple[Stage, str], ...]:
    """Return the numeric profile of each stage that the sample has been through."""
    return (*sample.profiles, (sample.stage, sample.profile or ""))


def segments_left(sample: Sample[L], segments: Sequence[StageSegment]) -> tuple[StageSegment, ...]:
    """Return the segments that a sample has not finished, of those that it goes through in all."""
    stages = [segment.stage for segment in segments]
    own, *later = segments[stages.index(sample.stage) :]
    is_done = sample.index >= own.stop and not own.last
    return tuple(later) if is_done else (own, *later)
