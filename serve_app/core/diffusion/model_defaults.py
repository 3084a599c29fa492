"""What a checkpoint is asked for when nobody says: steps, guidance, sampler.

Knows no files: names and notes are handed in. A checkpoint that was distilled to few steps goes
wrong with the defaults of the others, and says what it is in its name. Table after the cards of
SDXL-Turbo, SDXL-Lightning, Hyper-SD (ByteDance) and LCM-SDXL; their guidance 0 is our 1: off.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.core.diffusion.samplers import Sampler

_STEPS = re.compile(r"(\d+)[ _-]?step")


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What counts where a request says nothing."""

    steps: int = 30
    guidance: float | None = None  # None: as the request's temperature says
    sampler: Sampler = Sampler.EULER


SDXL_DEFAULTS = ModelDefaults()


@dataclass(frozen=True, slots=True)
class DistilledFamily:
    pattern: re.Pattern[str]  # in a name, in lower case
    steps: int
    step_counts: frozenset[int]  # step counts that a name may promise
    sampler: Sampler


_FAMILIES = (  # LCM last: merges are named after both, as "lightning-lcm"
    DistilledFamily(re.compile("lightning"), 4, frozenset({2, 4, 8}), Sampler.EULER_TRAILING),
    DistilledFamily(re.compile("hyper[ _-]?sd"), 4, frozenset({2, 4, 8}), Sampler.DDIM_TRAILING),
    DistilledFamily(re.compile("turbo"), 4, frozenset({1, 2, 3, 4}), Sampler.EULER_A_TRAILING),
    DistilledFamily(re.compile(r"(?<![a-z])lcm(?![a-z])"), 4, frozenset(range(2, 9)), Sampler.LCM),
)


def defaults_of(names: Iterable[str], scheduler: str = "") -> ModelDefaults:
    """The defaults of a checkpoint by all that it is called, and by its scheduler's class."""
    words = " ".join(names).lower()
    if scheduler == "LCMScheduler":
        words += " lcm"
    for kind in _FAMILIES:
        if kind.pattern.search(words):
            promised = {int(number) for number in _STEPS.findall(words)} & kind.step_counts
            return ModelDefaults(min(promised, default=kind.steps), 1.0, kind.sampler)
    return SDXL_DEFAULTS
