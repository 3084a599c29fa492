"""`ImageSpec`: one image asked for. Frozen, and legal by construction.

Knows nothing of how the image is made, of HTTP names, or of what a checkpoint can do.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from serve_app.core.errors import InvalidRequest

STEPS_RANGE = (1, 150)
GUIDANCE_RANGE = (0.0, 20.0)
SEED_RANGE = (0, 2**32 - 1)
LORA_WEIGHT_RANGE = (-2.0, 2.0)
LCM_MAX_STEPS = 50  # an LCM was distilled from so many, and takes some of them
PIXELS_PER_LATENT = 8  # along each side; diffusers' vae_scale_factor
LATENT_CHANNELS = 4  # of SDXL's VAE


class Solver(StrEnum):
    """How one step is taken, and the diffusers class each equals; `Sampler` has the options."""

    EULER = "euler"  # EulerDiscreteScheduler
    EULER_A = "euler_a"  # EulerAncestralDiscreteScheduler
    HEUN = "heun"  # HeunDiscreteScheduler
    DDIM = "ddim"  # DDIMScheduler
    DPMPP_2M = "dpmpp_2m"  # DPMSolverMultistepScheduler
    DPMPP_2M_SDE = "dpmpp_2m_sde"  # the same, algorithm_type="sde-dpmsolver++"
    DPMPP_SDE = "dpmpp_sde"  # DPMSolverSinglestepScheduler, algorithm_type="sde-dpmsolver++"
    UNIPC = "unipc"  # UniPCMultistepScheduler
    LCM = "lcm"  # LCMScheduler


class SigmaSpacing(StrEnum):
    """Which noise levels are walked, and the option of the diffusers class."""

    CHECKPOINT = ""  # its own timestep_spacing
    KARRAS = "karras"  # use_karras_sigmas=True
    EXPONENTIAL = "exponential"  # use_exponential_sigmas=True
    TRAILING = "trailing"  # timestep_spacing="trailing"; ComfyUI's "simple" but for rounding


class Sampler(StrEnum):
    """A solver and its levels, by the names the field gives them; all that diffusers has."""

    EULER = "euler"
    EULER_KARRAS = "euler_karras"
    EULER_EXPONENTIAL = "euler_exponential"
    EULER_TRAILING = "euler_trailing"
    EULER_A = "euler_a"
    EULER_A_TRAILING = "euler_a_trailing"
    HEUN = "heun"
    HEUN_KARRAS = "heun_karras"
    HEUN_EXPONENTIAL = "heun_exponential"
    HEUN_TRAILING = "heun_trailing"
    DDIM = "ddim"
    DDIM_TRAILING = "ddim_trailing"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_2M_EXPONENTIAL = "dpmpp_2m_exponential"
    DPMPP_2M_TRAILING = "dpmpp_2m_trailing"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_KARRAS = "dpmpp_2m_sde_karras"
    DPMPP_2M_SDE_EXPONENTIAL = "dpmpp_2m_sde_exponential"
    DPMPP_2M_SDE_TRAILING = "dpmpp_2m_sde_trailing"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_SDE_KARRAS = "dpmpp_sde_karras"
    DPMPP_SDE_EXPONENTIAL = "dpmpp_sde_exponential"
    UNIPC = "unipc"
    UNIPC_KARRAS = "unipc_karras"
    UNIPC_EXPONENTIAL = "unipc_exponential"
    UNIPC_TRAILING = "unipc_trailing"
    LCM = "lcm"

    @property
    def spacing(self) -> SigmaSpacing:
        """The end of the name; without one, the checkpoint's own."""
        return next(
            (levels for levels in SigmaSpacing if levels and self.endswith(levels)),
            SigmaSpacing(""),
        )

    @property
    def solver(self) -> Solver:
        """The name without its levels."""
        return Solver(self.removesuffix(f"_{self.spacing}"))

    @property
    def nfe(self) -> int:
        """Calls of the network that one step takes."""
        return 2 if self.solver is Solver.HEUN else 1


class Stage(StrEnum):
    """Which of the two experts works: base at high noise, refiner at low noise."""

    BASE = "base"
    REFINER = "refiner"


@dataclass(frozen=True, slots=True, order=True)
class Lora:
    """A LoRA by its name in the registry, and how strongly it counts."""

    name: str
    weight: float = 1.0


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
    model: str = ""  # name of its base checkpoint; "" takes the one that is the default
    loras: tuple[Lora, ...] = ()  # that base wears

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("prompt", "must not be empty")
        _check_range("seed", self.seed, *SEED_RANGE)
        _check_range("steps", self.steps, *STEPS_RANGE)
        if self.sampler is Sampler.LCM:
            _check_range("steps", self.steps, STEPS_RANGE[0], LCM_MAX_STEPS)
        _check_range("guidanceScale", self.guidance, *GUIDANCE_RANGE)
        _check_range("handoff", self.handoff, 0, 1)
        if self.strength is not None:
            _check_range("strength", self.strength, 0, 1)
            if self.strength == 0:
                raise InvalidRequest("strength", "must be above 0, got 0")
        for lora in self.loras:
            _check_range("loras", lora.weight, *LORA_WEIGHT_RANGE)
        names = [lora.name for lora in self.loras]
        for name in names:
            if names.count(name) > 1:
                raise InvalidRequest("loras", f"names {name} more than once")
        for name, side in (("width", self.width), ("height", self.height)):
            if side < PIXELS_PER_LATENT or side % PIXELS_PER_LATENT:
                raise InvalidRequest(name, f"must be a multiple of {PIXELS_PER_LATENT}, got {side}")

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on. At 1 or below it is off, as in diffusers."""
        return self.guidance > 1

    @property
    def rows(self) -> int:
        """UNet rows one step of this image takes: two when guided, else one."""
        return 2 if self.is_guided else 1

    @property
    def nfe(self) -> int:
        """Calls of the network from where it enters the schedule to its end, about."""
        entered = self.steps if self.strength is None else max(1, int(self.steps * self.strength))
        return entered * self.sampler.nfe

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Height and width of its latents."""
        return self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT


def _check_range(path: str, value: float, low: float, high: float) -> None:
    if not (isfinite(value) and low <= value <= high):
        raise InvalidRequest(path, f"must be between {low:g} and {high:g}, got {value}")
