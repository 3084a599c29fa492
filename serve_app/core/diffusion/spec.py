"""`ImageSpec`: one requested image, frozen and legal by construction.

It does not know how the image is made, or what a checkpoint can do. Its errors name fields as
requests do.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from serve_app.core.diffusion.extensions import WEIGHT_RANGE, ExtensionRef
from serve_app.core.diffusion.prompt_schedule import (
    ScheduledText,
    prompt_schedule,
    texts_by_step,
)
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.errors import InvalidRequest

STEPS_RANGE = (1, 150)
GUIDANCE_RANGE = (0.0, 20.0)
SIGMA_RANGE = (0.0, 10_000.0)
SEED_RANGE = (0, 2**32 - 1)
PIXELS_PER_LATENT = 8  # along each side; diffusers' vae_scale_factor
LATENT_CHANNELS = 4  # of SDXL's VAE


class Stage(StrEnum):
    """One of the two experts: base at high noise, refiner at low noise."""

    BASE = "base"
    REFINER = "refiner"


class StepCache(StrEnum):
    """What a sample's steps may reuse of the network's work at earlier ones."""

    OFF = "off"
    DEEPCACHE = "deepcache"  # deep features: see `step_kind`


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """One requested image.

    Both prompts may change from step to step: see `prompt_schedule`. A `negative_prompt` of None is
    not "": the checkpoint decides what an absent one means. `strength` is None for text-to-image,
    else the share of the steps that run on the initial image. `handoff` is the share of the noise
    range that belongs to base: 1 is base alone. `guidance_interval` has the noise levels between
    which guidance is on, in sigma; None: at all. `aspect` is a ratio by its name, for makers that
    choose the size themselves. Raises `InvalidRequest` for a value outside its range.
    """

    prompt: str
    seed: int
    width: int  # pixels
    height: int  # pixels
    steps: int
    guidance: float
    negative_prompt: str | None = None
    sampler: Sampler = Sampler.EULER
    strength: float | None = None
    handoff: float = 1.0
    model: str | None = None  # name of the base checkpoint; None: the default one
    refiner: str | None = None  # name of the refiner; None: the only one
    extensions: tuple[ExtensionRef, ...] = ()  # of the base model
    guidance_interval: tuple[float, float] | None = None  # low, high; see `is_guided_at`
    cache: StepCache = StepCache.OFF
    aspect: str | None = None  # None: the maker's own choice

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("prompt", "must not be empty")
        _check_range("seed", self.seed, *SEED_RANGE)
        min_steps, max_steps = STEPS_RANGE
        max_steps = self.sampler.definition.distilled_steps or max_steps
        _check_range("steps", self.steps, min_steps, max_steps)
        _check_range("guidance", self.guidance, *GUIDANCE_RANGE)
        _check_range("handoff", self.handoff, 0, 1)
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            for sigma in self.guidance_interval:
                _check_range("guidance_interval", sigma, *SIGMA_RANGE)
            if low >= high:
                raise InvalidRequest("guidance_interval", f"must ascend, got {low:g} to {high:g}")
        if self.strength is not None:
            _check_range("strength", self.strength, 0, 1)
            if self.strength == 0:
                raise InvalidRequest("strength", "must be above 0, got 0")
        for ref in self.extensions:
            _check_range("extensions", ref.weight, *WEIGHT_RANGE)
        keys = [ref.key for ref in self.extensions]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidRequest("extensions", f"names the {key} more than once")
        for name, side in (("width", self.width), ("height", self.height)):
            if side < PIXELS_PER_LATENT or side % PIXELS_PER_LATENT:
                raise InvalidRequest(name, f"must be a multiple of {PIXELS_PER_LATENT}, got {side}")
        for path, prompt in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            prompt_schedule(prompt or "", self.steps, path)

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on: above 1, as in diffusers."""
        return self.guidance > 1

    @property
    def rows(self) -> int:
        """The most UNet rows of a network evaluation: two with guidance, else one."""
        return 2 if self.is_guided else 1

    @property
    def running_steps(self) -> int:
        """How many of its steps run."""
        return steps_after_strength(self.steps, self.strength)

    @property
    def nfe(self) -> int:
        """Network evaluations from its first step to its last, to within one."""
        return self.running_steps * self.sampler.nfe

    @property
    def prompts_by_step(self) -> tuple[str, ...]:
        """The text of the prompt at each step that runs."""
        return texts_by_step(prompt_schedule(self.prompt, self.steps), self.running_steps)

    @property
    def prompt_texts(self) -> tuple[str, ...]:
        """The prompt as it was sent, and what else it is at some step: what a filter reads."""
        return tuple(dict.fromkeys((self.prompt, *self.prompts_by_step)))

    @property
    def negative_prompts_by_step(self) -> tuple[str, ...]:
        """The text of the negative prompt, "" if it is absent, at each step that runs."""
        return texts_by_step(self._negative_schedule, self.running_steps)

    @property
    def encoded_prompts(self) -> int:
        """How many texts are encoded for it, to within the one of an absent negative prompt."""
        negatives = self.negative_prompts_by_step if self.is_guided else ()
        return len(set(self.prompts_by_step)) + len(set(negatives))

    @property
    def _negative_schedule(self) -> tuple[ScheduledText, ...]:
        return prompt_schedule(self.negative_prompt or "", self.steps, "negative_prompt")

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT


def steps_after_strength(steps: int, strength: float | None) -> int:
    """Return how many steps run: all of them from noise, at least one from an initial image."""
    return steps if strength is None else max(1, min(int(steps * strength), steps))


def _check_range(path: str, value: float, low: float, high: float) -> None:
    """Raise `InvalidRequest` unless the value is finite and in the range, ends included."""
    if not (isfinite(value) and low <= value <= high):
        raise InvalidRequest(path, f"must be between {low:g} and {high:g}, got {value}")
