"""A requested image as the core knows it: its spec, its schedule, and its segments by stage."""

from functools import lru_cache

from serve_app.core.diffusion.sample import StageSegment, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.spec import SIGMA_RANGE, ImageSpec
from serve_app.simulator.traces import Arrival

NOISE = NoiseConfig(timestep_spacing="leading", steps_offset=1)


def image_of(
    arrival: Arrival, *, refiner: bool
) -> tuple[ImageSpec, Schedule, tuple[StageSegment, ...]]:
    """Return the spec of a requested image, its schedule, and its segments by stage."""
    interval = (arrival.guidance_low, arrival.guidance_high)
    spec = ImageSpec(
        prompt="a",
        seed=0,
        width=arrival.width,
        height=arrival.height,
        steps=arrival.steps,
        guidance=arrival.guidance,
        handoff=arrival.handoff,
        guidance_interval=None if interval == SIGMA_RANGE else interval,
        cache=arrival.cache,
    )
    schedule = _schedule(arrival.steps, arrival.handoff)
    return spec, schedule, stage_segments(schedule, arrival.handoff, refiner=refiner)


@lru_cache(maxsize=4096)
def _schedule(steps: int, handoff: float) -> Schedule:
    return make_schedule(NOISE, Sampler.EULER, steps, None, handoff)
