"""The defaults of a checkpoint: steps, guidance and sampler of a request that names none.

No files: the caller passes names and metadata. A checkpoint distilled to few steps needs other
defaults than SDXL, and its name says so. The table follows the model cards of SDXL-Turbo,
SDXL-Lightning, Hyper-SD (ByteDance) and LCM-SDXL; their guidance 0 (off) is 1 here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.core.diffusion.samplers import Sampler

_STEPS = re.compile(r"(\d+)[ _-]?step")


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """The values for fields that a request leaves out."""

    steps: int = 30
    guidance: float | None = None  # None: from the request's temperature
    sampler: Sampler = Sampler.EULER


SDXL_DEFAULTS = ModelDefaults()


@dataclass(frozen=True, slots=True)
class DistilledFamily:
    """Checkpoints that were distilled to few steps in the same way."""

    pattern: re.Pattern[str]  # of its names, in lower case
    steps: int  # where the name gives no step count
    step_counts: frozenset[int]  # that a name may give
    sampler: Sampler


_FAMILIES = (  # LCM last: a merge has both names, such as "lightning-lcm"
    DistilledFamily(re.compile("lightning"), 4, frozenset({2, 4, 8}), Sampler.EULER_TRAILING),
    DistilledFamily(re.compile("hyper[ _-]?sd"), 4, frozenset({2, 4, 8}), Sampler.DDIM_TRAILING),
    DistilledFamily(re.compile("turbo"), 4, frozenset({1, 2, 3, 4}), Sampler.EULER_A_TRAILING),
    DistilledFamily(re.compile(r"(?<![a-z])lcm(?![a-z])"), 4, frozenset(range(2, 9)), Sampler.LCM),
)


def defaults_of(names: Iterable[str], scheduler: str = "") -> ModelDefaults:
    """Return the defaults of a checkpoint from its names and the class of its scheduler."""
    words = " ".join(names).lower()
    if scheduler == "LCMScheduler":
        words += " lcm"
    for family in _FAMILIES:
        if family.pattern.search(words):
            named = {int(number) for number in _STEPS.findall(words)} & family.step_counts
            return ModelDefaults(min(named, default=family.steps), 1.0, family.sampler)
    return SDXL_DEFAULTS
