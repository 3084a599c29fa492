"""`ImageSpec`: one image asked for. Frozen, and legal by construction.

Knows nothing of how the image is made, of HTTP names, or of what a checkpoint can do.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from serve_app.core.errors import InvalidRequest

STEPS = (1, 150)
GUIDANCE = (0.0, 20.0)
SEED = (0, 2**32 - 1)
PIXELS_PER_LATENT = 8


class Sampler(StrEnum):
    """The samplers, by the names the field gives them, and the diffusers class each equals."""

    EULER = "euler"  # EulerDiscreteScheduler
    EULER_A = "euler_a"  # EulerAncestralDiscreteScheduler
    DPMPP_2M = "dpmpp_2m"  # DPMSolverMultistepScheduler
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"  # DPMSolverMultistepScheduler(use_karras_sigmas=True)


class Stage(StrEnum):
    """Which of the two experts works: base at high noise, refiner at low noise."""

    BASE = "base"
    REFINER = "refiner"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """One image asked for.

    `negative_prompt` None is not "": the checkpoint decides what an absent one means.
    `strength` is None for an image from noise, else where a base image enters the schedule.
    `handoff` is the fraction of the noise range that belongs to base: 1 is base alone.
    Raises `InvalidRequest` for a value outside its range.
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

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("prompt", "must not be empty")
        _within("seed", self.seed, *SEED)
        _within("steps", self.steps, *STEPS)
        _within("guidanceScale", self.guidance, *GUIDANCE)
        _within("handoff", self.handoff, 0, 1)
        if self.strength is not None:
            _within("strength", self.strength, 0, 1)
            if self.strength == 0:
                raise InvalidRequest("strength", "must be above 0, got 0")
        for name, side in (("width", self.width), ("height", self.height)):
            if side < PIXELS_PER_LATENT or side % PIXELS_PER_LATENT:
                raise InvalidRequest(name, f"must be a multiple of {PIXELS_PER_LATENT}, got {side}")

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on. At 1 or below it is off, as in diffusers."""
        return self.guidance > 1

    @property
    def rows(self) -> int:
        """UNet rows one step of this image takes: two when guided, else one."""
        return 2 if self.guided else 1

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Height and width of its latents."""
        return self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT


def _within(path: str, value: float, low: float, high: float) -> None:
    if not (isfinite(value) and low <= value <= high):
        raise InvalidRequest(path, f"must be between {low:g} and {high:g}, got {value}")
