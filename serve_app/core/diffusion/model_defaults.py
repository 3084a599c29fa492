"""The defaults of a checkpoint: steps, guidance and sampler of a request that names none.

No files: the caller passes names and metadata. A checkpoint distilled to few steps needs other
defaults than SDXL, and its name says so. The table follows the model cards of SDXL-Turbo,
SDXL-Lightning, Hyper-SD (ByteDance), LCM-SDXL, TCD, DMD2 and PCM; their guidance 0 (off) is 1 here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.core.diffusion.samplers import Sampler, Solver
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import StepCache

# In names in lower case.
TURBO = re.compile("turbo")
DMD2 = re.compile(r"(?<![a-z])dmd[ _-]?2(?!\d)")
PCM = re.compile(r"(?<![a-z])pcm(?![a-z])")
_STEPS = re.compile(r"(\d+)[ _-]?step")


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """The values for fields that a request leaves out."""

    steps: int = 30
    guidance: float | None = None  # None: from the request's temperature
    sampler: Sampler = Sampler.EULER
    guidance_interval: tuple[float, float] | None = None  # None: guidance at every step
    cache: StepCache = StepCache.OFF


SDXL_DEFAULTS = ModelDefaults()


@dataclass(frozen=True, slots=True)
class DistilledFamily:
    """Checkpoints that were distilled to few steps in the same way."""

    pattern: re.Pattern[str]  # of its names, in lower case
    steps: int  # where the name gives no step count
    step_counts: frozenset[int]  # that a name may give
    sampler: Sampler


_LCM = re.compile(r"(?<![a-z])lcm(?![a-z])")
_TCD = re.compile(r"(?<![a-z])tcd(?![a-z])")
_FAMILIES = (  # LCM last: a merge has both names, such as "lightning-lcm"
    DistilledFamily(re.compile("lightning"), 4, frozenset({2, 4, 8}), Sampler.EULER_TRAILING),
    DistilledFamily(re.compile("hyper[ _-]?sd"), 4, frozenset({2, 4, 8}), Sampler.DDIM_TRAILING),
    DistilledFamily(TURBO, 4, frozenset({1, 2, 3, 4}), Sampler.EULER_A_TRAILING),
    DistilledFamily(DMD2, 4, frozenset(range(4, 9)), Sampler.LCM),
    DistilledFamily(PCM, 4, frozenset({2, 4, 8, 16}), Sampler.DDIM_TRAILING),
    DistilledFamily(_TCD, 4, frozenset(range(2, 9)), Sampler.DDIM_TRAILING),
    DistilledFamily(_LCM, 4, frozenset(range(2, 9)), Sampler.LCM),
)


def defaults_of(names: Iterable[str], scheduler: CheckpointScheduler) -> ModelDefaults:
    """Return the defaults of a checkpoint from its names and its own scheduler.

    The scheduler's sampler is the default. Under the name of a distilled family it must be one for
    few steps, or else the family's takes its place: many conversions keep SDXL's.
    """
    words = " ".join([*names, scheduler.family]).lower()
    own = scheduler.sampler
    for family in _FAMILIES:
        if family.pattern.search(words):
            named = {int(number) for number in _STEPS.findall(words)} & family.step_counts
            sampler = own if _is_for_few_steps(scheduler) else family.sampler
            return ModelDefaults(min(named, default=family.steps), 1.0, sampler)
    return ModelDefaults(sampler=own)


def _is_for_few_steps(scheduler: CheckpointScheduler) -> bool:
    noise, own = scheduler.noise, scheduler.sampler
    is_trailing = "trailing" in (noise.timestep_spacing, own.spacing)
    return bool(noise.edm or own.solver is Solver.LCM or is_trailing)
