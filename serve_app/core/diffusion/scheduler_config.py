"""A checkpoint's own scheduler: the noise and the sampler that its class and options mean.

Every option of every class in `_CLASSES` is listed with the values that have an equal here; a test
compares the lists with the signatures in diffusers. What the network was trained on must be
understood, so anything else is refused. How its steps are taken is a request's choice anyway, so
an option of that kind that has no equal becomes a warning. No files: the caller passes the JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from serve_app.core.diffusion.samplers import TABLE, Sampler, SigmaSpacing, Solver
from serve_app.core.diffusion.schedule import (
    SCHEDULER_CONFIG,
    SUPPORTED_NOISE,
    EdmNoise,
    NoiseConfig,
)
from serve_app.core.errors import CheckpointError

_Options = Mapping[str, tuple[Any, ...]]  # the values with an equal here, the default first


@dataclass(frozen=True, slots=True)
class CheckpointScheduler:
    """The noise of a checkpoint, and the sampler that equals its scheduler."""

    noise: NoiseConfig
    sampler: Sampler = Sampler.EULER
    warnings: tuple[str, ...] = ()  # what of its scheduler has no equal
    family: str = ""  # the distilled models that its class is for, as in `model_defaults`


@dataclass(frozen=True, slots=True)
class _SchedulerClass:
    """A class of diffusers, and its options beside those of `NoiseConfig`."""

    solver: Solver
    options: _Options = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they differ from elsewhere
    has_equal: bool = True  # else `solver` is the nearest there is
    is_edm: bool = False
    spacing: SigmaSpacing = SigmaSpacing.CHECKPOINT  # whatever `timestep_spacing` says
    family: str = ""  # of distilled models


_FLOW = "use_flow_sigmas"  # of a rectified flow, whichever class reads it
_BOTH = (False, True)
_NOISE_KEYS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "trained_betas",
        "steps_offset",
        "rescale_betas_zero_snr",
        "sigma_min",
        "sigma_max",
        *SUPPORTED_NOISE,
    }
)
_WITHOUT_EFFECT = frozenset(  # read only together with options that are not supported, or never
    {
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "flow_shift",
        "time_shift_type",
        "euler_at_final",  # the last step, to sigma 0, is of first order in any case
        "skip_prk_steps",
        "noise_sampler_seed",
        "tensor_format",
        "timestep_values",
        "predict_epsilon",
        "shift_terminal",
    }
)
_REFUSED = frozenset(  # they alter what the network's output means, or are of another kind of model
    {
        "clip_sample",
        "thresholding",
        "timestep_type",
        "use_dynamic_shifting",
        _FLOW,
        "variance_type",
    }
)
_SPACED: _Options = {
    "use_karras_sigmas": _BOTH,
    "use_exponential_sigmas": _BOTH,
    "use_beta_sigmas": (False,),
}
_TO_ZERO: _Options = {"final_sigmas_type": ("zero",)}
_NO_FLOW: _Options = {_FLOW: (False,), "use_dynamic_shifting": (False,)}
_NO_CLIP: _Options = {"clip_sample": (False,)}
_DPM_ORDER: _Options = {
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # diffusers reads these as midpoint
    "thresholding": (False,),
    "lower_order_final": (True, False),  # no effect at order 2, where the last step goes to 0
    **_TO_ZERO,
}
_DPM: _Options = {
    **_SPACED,
    **_NO_FLOW,
    **_DPM_ORDER,
    "lambda_min_clipped": (-inf,),
    "variance_type": (None,),
}
_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING = {"timestep_spacing": "leading"}
_LCM: _Options = {
    **_NO_CLIP,
    "original_inference_steps": (50,),
    "set_alpha_to_one": (True, False),  # no effect: the last step leaps to the picture
    "thresholding": (False,),
    "timestep_scaling": (10.0,),
}
_DDIM = _SchedulerClass(
    Solver.DDIM,
    {**_NO_CLIP, "set_alpha_to_one": (True, False), "thresholding": (False,)},
    {**_LEADING, "clip_sample": True},
)
_EDM_SPACINGS = (SigmaSpacing.KARRAS.value, SigmaSpacing.EXPONENTIAL.value)
_EDM: _Options = {"sigma_schedule": _EDM_SPACINGS, **_TO_ZERO}
_EDM_NUMBERS = ("sigma_min", "sigma_max", "sigma_data", "rho")
_ALGORITHM: _Options = {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis")}
_CLASSES: dict[str, _SchedulerClass] = {
    "EulerDiscreteScheduler": _SchedulerClass(
        Solver.EULER,
        {
            **_SPACED,
            **_TO_ZERO,
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
        },
    ),
    "EulerAncestralDiscreteScheduler": _SchedulerClass(Solver.EULER_A),
    "HeunDiscreteScheduler": _SchedulerClass(Solver.HEUN, {**_SPACED, **_NO_CLIP}, _LATENT_BETAS),
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DPMSolverMultistepScheduler": _SchedulerClass(
        Solver.DPMPP_2M, {**_DPM, **_ALGORITHM, "use_lu_lambdas": (False,)}
    ),
    "DPMSolverSinglestepScheduler": _SchedulerClass(
        Solver.DPMPP_SDE,
        {**_DPM, "algorithm_type": ("sde-dpmsolver++",)},
        {"algorithm_type": "dpmsolver++"},
    ),
    "UniPCMultistepScheduler": _SchedulerClass(
        Solver.UNIPC,
        {
            **_SPACED,
            **_NO_FLOW,
            **_DPM_ORDER,
            "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # diffusers reads these as bh2
            "lower_order_final": (True,),
            "predict_x0": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
        },
    ),
    "LCMScheduler": _SchedulerClass(
        Solver.LCM,
        _LCM,
        {**_LATENT_BETAS, **_LEADING, "beta_schedule": "scaled_linear"},
        family="lcm",
    ),
    "EDMEulerScheduler": _SchedulerClass(Solver.EULER, _EDM, is_edm=True),
    "EDMDPMSolverMultistepScheduler": _SchedulerClass(
        Solver.DPMPP_2M, {**_EDM, **_DPM_ORDER, **_ALGORITHM}, is_edm=True
    ),
    "PNDMScheduler": _SchedulerClass(Solver.EULER, {}, _LEADING, has_equal=False),
    "LMSDiscreteScheduler": _SchedulerClass(Solver.EULER, _SPACED, has_equal=False),
    "DDPMScheduler": _SchedulerClass(Solver.EULER_A, {}, _LEADING, has_equal=False),
    "DEISMultistepScheduler": _SchedulerClass(Solver.DPMPP_2M, _SPACED, has_equal=False),
    "KDPM2DiscreteScheduler": _SchedulerClass(Solver.HEUN, _SPACED, _LATENT_BETAS, has_equal=False),
    "KDPM2AncestralDiscreteScheduler": _SchedulerClass(
        Solver.EULER_A, {}, _LATENT_BETAS, has_equal=False
    ),
    "DPMSolverSDEScheduler": _SchedulerClass(
        Solver.DPMPP_SDE, _SPACED, _LATENT_BETAS, has_equal=False
    ),
    # A pipeline calls it with eta 0: DDIM's steps between LCM's timesteps, which are the trailing
    # ones but for rounding. `lcm` adds all of the noise again, which is eta 1.
    "TCDScheduler": _SchedulerClass(
        Solver.DDIM,
        {},
        {**_LATENT_BETAS, **_LEADING, "beta_schedule": "scaled_linear"},
        has_equal=False,
        spacing=SigmaSpacing.TRAILING,
        family="tcd",
    ),
}
_KNOWN_KEYS = frozenset(
    {
        *_NOISE_KEYS,
        *_WITHOUT_EFFECT,
        *_EDM_NUMBERS,
        *(key for known in _CLASSES.values() for key in known.options),
    }
)


def read_scheduler(config: Mapping[str, Any], class_name: str = "") -> CheckpointScheduler:
    """Read a `scheduler_config.json`.

    `class_name` is the class that model_index.json names, which diffusers prefers to the one in
    the file; null means absent. Raises `CheckpointError`, which names the class and the key, for
    an unknown class or key and for noise that is not understood.
    """
    present = {
        key: value for key, value in config.items() if value is not None and not key.startswith("_")
    }
    name = class_name or str(config.get("_class_name", ""))
    kind = _CLASSES.get(name)
    if kind is None:
        raise CheckpointError(
            f"has the scheduler class {name or '(none)'} in {SCHEDULER_CONFIG}, which is not "
            f"supported; supported: {', '.join(_CLASSES)}"
        )
    for key in sorted(present.keys() - _KNOWN_KEYS):
        raise CheckpointError(
            f"has {key}={present[key]!r} in {SCHEDULER_CONFIG}, which is no option of {name} that "
            "is understood"
        )
    values = {**kind.defaults, **present}
    chosen, warnings = _checked_options(name, kind.options, values)
    if kind.is_edm:
        noise = _edm_noise(values, chosen)
    else:
        reads_alpha = kind.solver is Solver.DDIM
        noise = NoiseConfig.from_scheduler_config(
            {key: value for key, value in values.items() if key in _NOISE_KEYS}
            | {"set_alpha_to_one": reads_alpha and chosen.get("set_alpha_to_one")}
        )
    sampler = _sampler(kind, chosen)
    if not kind.has_equal:
        warnings = [f"the checkpoint's {name}"]
    return CheckpointScheduler(
        noise,
        sampler,
        tuple(f"{part} has no equal here: {sampler} is used by default" for part in warnings),
        kind.family,
    )


def _checked_options(
    name: str, options: _Options, values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the options as they are followed, and those that have no equal."""
    chosen: dict[str, Any] = {}
    without_equal: list[str] = []
    for key, accepted in {_FLOW: (False,), **options}.items():
        value = values.get(key, accepted[0])
        chosen[key] = value if value in accepted else accepted[0]
        if value in accepted:
            continue
        if key in _REFUSED:
            raise CheckpointError(
                f"has {key}={value!r} in {SCHEDULER_CONFIG} ({name}), which is not supported"
            )
        without_equal.append(f"{key}={value!r} of the checkpoint's {name}")
    return chosen, without_equal


def _edm_noise(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> NoiseConfig:
    prediction = {key: values[key] for key in ("prediction_type",) if key in values}
    try:
        numbers = {key: float(values[key]) for key in _EDM_NUMBERS if key in values}
        edm = EdmNoise(**numbers, spacing=SigmaSpacing(chosen["sigma_schedule"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"has an unreadable {SCHEDULER_CONFIG}: {error}") from None
    if not (0 < edm.sigma_min < edm.sigma_max < inf and edm.sigma_data > 0 and edm.rho > 0):
        raise CheckpointError(
            f"has a range of noise in {SCHEDULER_CONFIG} that can't be: sigma_min={edm.sigma_min}, "
            f"sigma_max={edm.sigma_max}, sigma_data={edm.sigma_data}, rho={edm.rho}"
        )
    return replace(NoiseConfig.from_scheduler_config(prediction), edm=edm)


def _sampler(kind: _SchedulerClass, chosen: Mapping[str, Any]) -> Sampler:
    """Return the sampler of a class with these options."""
    solver, spacing = kind.solver, kind.spacing
    if solver is Solver.DPMPP_2M and chosen.get("algorithm_type") == "sde-dpmsolver++":
        solver = Solver.DPMPP_2M_SDE
    if chosen.get("use_karras_sigmas"):
        spacing = SigmaSpacing.KARRAS
    elif chosen.get("use_exponential_sigmas"):
        spacing = SigmaSpacing.EXPONENTIAL
    row = next(row for row in TABLE if row.solver is solver)
    return Sampler(row.name(spacing))
