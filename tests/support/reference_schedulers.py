"""The diffusers class and options that each sampler equals: the oracle of schedules and steps."""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing, Solver

_CLASSES: dict[Solver, tuple[Any, dict[str, Any]]] = {
    Solver.EULER: (EulerDiscreteScheduler, {}),
    Solver.EULER_A: (EulerAncestralDiscreteScheduler, {}),
    Solver.HEUN: (HeunDiscreteScheduler, {}),
    Solver.DDIM: (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    Solver.DPMPP_2M: (DPMSolverMultistepScheduler, {}),
    Solver.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    Solver.DPMPP_SDE: (
        DPMSolverSinglestepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    ),
    Solver.UNIPC: (UniPCMultistepScheduler, {}),
    Solver.LCM: (LCMScheduler, {}),
}
_OPTIONS: dict[SigmaSpacing, dict[str, Any]] = {
    SigmaSpacing.CHECKPOINT: {},
    SigmaSpacing.KARRAS: {"use_karras_sigmas": True},
    SigmaSpacing.EXPONENTIAL: {"use_exponential_sigmas": True},
    SigmaSpacing.TRAILING: {"timestep_spacing": "trailing"},
}


def stock_scheduler(sampler: Sampler, config: Mapping[str, Any]) -> Any:
    """Return the diffusers scheduler of a sampler for a `scheduler_config.json`."""
    scheduler, options = _CLASSES[sampler.solver]
    return scheduler.from_config({**config, **options, **_OPTIONS[sampler.spacing]})


_EDM_CLASSES: dict[Solver, tuple[Any, dict[str, Any]]] = {
    Solver.EULER: (EDMEulerScheduler, {}),
    Solver.DPMPP_2M: (EDMDPMSolverMultistepScheduler, {}),
    Solver.DPMPP_2M_SDE: (EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}
EDM_SAMPLERS = tuple(
    sampler
    for sampler in Sampler
    if sampler.solver in _EDM_CLASSES and sampler.spacing is not SigmaSpacing.TRAILING
)


def stock_edm_scheduler(sampler: Sampler, config: Mapping[str, Any]) -> Any:
    """Return the diffusers scheduler of a sampler for an EDM `scheduler_config.json`."""
    scheduler, options = _EDM_CLASSES[sampler.solver]
    if sampler.spacing is not SigmaSpacing.CHECKPOINT:
        options = {**options, "sigma_schedule": sampler.spacing.value}
    return scheduler.from_config({**config, **options})
