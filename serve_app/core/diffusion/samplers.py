"""The table of samplers: all that sets one apart, except the arithmetic of its step.

To add a sampler, add its names and its row here, and its step in `solver.py`.
"""

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum


class Solver(StrEnum):
    """How one step is taken. The comment names the diffusers class that it equals."""

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
    """How the sigmas of a schedule are spaced. The comment names the option in diffusers."""

    CHECKPOINT = "checkpoint"  # the checkpoint's own timestep_spacing
    KARRAS = "karras"  # use_karras_sigmas=True
    EXPONENTIAL = "exponential"  # use_exponential_sigmas=True
    TRAILING = "trailing"  # timestep_spacing="trailing"; ComfyUI's "simple" but for rounding

    @property
    def a1111_name(self) -> str:
        """The schedule type in AUTOMATIC1111's web UI."""
        return _A1111_SCHEDULE_TYPES[self]


_A1111_SCHEDULE_TYPES = {
    SigmaSpacing.CHECKPOINT: "Automatic",
    SigmaSpacing.KARRAS: "Karras",
    SigmaSpacing.EXPONENTIAL: "Exponential",
    SigmaSpacing.TRAILING: "Simple",
}


class Sampler(StrEnum):
    """A solver with a sigma spacing, by its name in requests; every combination in diffusers."""

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
    def definition(self) -> "SamplerDef":
        """The row of the table for its solver."""
        return _BY_NAME[self][0]

    @property
    def spacing(self) -> SigmaSpacing:
        """How its sigmas are spaced."""
        return _BY_NAME[self][1]

    @property
    def solver(self) -> Solver:
        """What takes each step."""
        return self.definition.solver

    @property
    def nfe(self) -> int:
        """Network evaluations (UNet calls) per requested step."""
        return self.definition.nfe


@dataclass(frozen=True, slots=True)
class SamplerDef:
    """A row of the table: a solver, and how its diffusers class makes the grid.

    The grid is the timesteps of a schedule and their sigmas.
    """

    solver: Solver
    a1111_name: str  # the sampler in AUTOMATIC1111's web UI
    spacings: frozenset[SigmaSpacing]
    _: KW_ONLY
    nfe: int = 1  # network evaluations per requested step
    is_stochastic: bool = False  # adds fresh noise
    has_fractional_timesteps: bool = False  # as in k-diffusion: spaced between the grid's own ends
    has_extra_interval: bool = False  # one interval more than steps; leaves out the lowest timestep
    truncates_cosine_grid: bool = False  # Karras timesteps are cut, not rounded, on cosine betas
    # Steps from t to t - T // steps, even if that is not the next timestep of the grid.
    has_fixed_stride: bool = False
    timestep_spacing: str | None = None  # replaces the checkpoint's
    distilled_steps: int | None = None  # chooses its timesteps from this many: the most it can run
    needs_timesteps: bool = False  # steps by training timesteps, which an EDM checkpoint lacks

    def name(self, spacing: SigmaSpacing) -> str:
        """Return the name of the sampler with that spacing."""
        own = spacing is SigmaSpacing.CHECKPOINT
        return self.solver.value if own else f"{self.solver}_{spacing}"


_ALL = frozenset(SigmaSpacing)
_OWN = frozenset({SigmaSpacing.CHECKPOINT})
_TRAILING = _OWN | {SigmaSpacing.TRAILING}
TABLE = (
    SamplerDef(Solver.EULER, "Euler", _ALL, has_fractional_timesteps=True),
    SamplerDef(
        Solver.EULER_A, "Euler a", _TRAILING, is_stochastic=True, has_fractional_timesteps=True
    ),
    SamplerDef(Solver.HEUN, "Heun", _ALL, nfe=2, has_fractional_timesteps=True),
    SamplerDef(Solver.DDIM, "DDIM", _TRAILING, has_fixed_stride=True, needs_timesteps=True),
    SamplerDef(
        Solver.DPMPP_2M, "DPM++ 2M", _ALL, has_extra_interval=True, truncates_cosine_grid=True
    ),
    SamplerDef(
        Solver.DPMPP_2M_SDE,
        "DPM++ 2M SDE",
        _ALL,
        is_stochastic=True,
        has_extra_interval=True,
        truncates_cosine_grid=True,
    ),
    SamplerDef(
        Solver.DPMPP_SDE,
        "DPM++ SDE",
        _ALL - {SigmaSpacing.TRAILING},
        is_stochastic=True,
        has_extra_interval=True,
        timestep_spacing="linspace",
    ),
    SamplerDef(Solver.UNIPC, "UniPC", _ALL, has_extra_interval=True),
    SamplerDef(
        Solver.LCM, "LCM", _OWN, is_stochastic=True, distilled_steps=50, needs_timesteps=True
    ),
)
_BY_NAME = {row.name(spacing): (row, spacing) for row in TABLE for spacing in row.spacings}
