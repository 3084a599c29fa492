"""Small samples for a step scheduler, with numbers for latents, and the turns that it plans."""

from collections.abc import Iterator

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import (
    Sample,
    StageSegment,
    after_step,
    new_sample,
    stage_segments,
    with_latents,
)
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind

NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)


def sample(
    id: str,
    steps: int = 4,
    *,
    guidance: float = 5.0,
    side: int = 64,
    strength: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    cache: StepCache = StepCache.OFF,
    caller: Caller = NO_CALLER,
) -> Sample[float]:
    """Return a base sample that has not begun, `side` pixels wide."""
    spec = ImageSpec(
        prompt="a fox",
        seed=0,
        width=side,
        height=64,
        steps=steps,
        guidance=guidance,
        strength=strength,
        guidance_interval=guidance_interval,
        cache=cache,
    )
    schedule = make_schedule(NOISE, Sampler.EULER, steps, strength, 1.0)
    init_image = None if strength is None else bytes(side * 64 * 3)
    return new_sample(id, spec, schedule, Stage.BASE, ImageInputs(init_image), caller)


def whole_segment(sample: Sample[float]) -> StageSegment:
    """Return the one segment of an image that base generates alone."""
    return stage_segments(sample.schedule, 1.0, refiner=False)[0]


def run_plan(plan: Plan[float]) -> list[Sample[float]]:
    """Return the samples of a plan, as a model would return them."""
    if plan.work is WorkKind.STEP:
        return [after_step(sample, 0.0, (), sample.noise_draws) for sample in plan.samples]
    (sample,) = plan.samples
    makes_latents = plan.work is WorkKind.ENCODE or (
        plan.work is WorkKind.CONDITION and sample.inputs.init_image is None
    )
    return [with_latents(sample, 1.0, 1) if makes_latents and sample.latents is None else sample]


def turns(scheduler: StepScheduler[float]) -> Iterator[tuple[Plan[float], tuple[str, ...]]]:
    """Run the scheduler until it is empty; yield each plan and the ids of the finished samples."""
    while (plan := next_plan(scheduler)) is not None:
        scheduler.charge(plan, 1.0)
        yield plan, tuple(sample.id for sample in scheduler.settle(plan, run_plan(plan)))


def next_plan(scheduler: StepScheduler[float]) -> Plan[float] | None:
    """Return the next plan as the engine asks for it."""
    scheduler.admit_ready()
    return scheduler.plan()


def scheduler_of(*samples: Sample[float], images: int = 4, lanes: int = 8) -> StepScheduler[float]:
    """Return a scheduler of one base model that has these samples; in fast mode with 0 lanes."""
    return scheduler_with(BatchSize(images, (lanes,) if lanes else ()), *samples)


def scheduler_with(size: BatchSize, *samples: Sample[float]) -> StepScheduler[float]:
    """Return a scheduler of one base model with this batch size."""
    scheduler: StepScheduler[float] = StepScheduler({ModelKey(Stage.BASE): size})
    for sample in samples:
        scheduler.add(sample, whole_segment(sample))
    return scheduler
