"""The sigmas and timesteps of one image, as plain floats, and where base hands over to the refiner.

No tensors and no files. Timestep spacings: Lin et al. 2023, table 2. Karras sigmas: Karras et al.
2022, equation 5. Every schedule equals that of the sampler's diffusers class. These classes differ
in how they count and round timesteps, and between which ends they space sigmas: see `SamplerDef`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, log, sqrt
from typing import Any

from serve_app.core.diffusion.preconditioning import NetworkOutput, Preconditioning
from serve_app.core.diffusion.samplers import Sampler, SamplerDef, SigmaSpacing
from serve_app.core.diffusion.sigma_spacing import (
    interpolate,
    sigma_to_timestep,
    spaced_sigmas,
)
from serve_app.core.diffusion.spec import steps_after_strength
from serve_app.core.diffusion.training_noise import (
    cosine_betas,
    f32,
    power_betas,
    sigmas_of_betas,
)
from serve_app.core.errors import CheckpointError, InvalidRequest

KARRAS_RHO = 7.0
SCHEDULER_CONFIG = "scheduler_config.json"
SUPPORTED_NOISE = {  # what works of diffusers' values
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
_KINDS: dict[str, Any] = {  # how the fields of `NoiseConfig` are read
    "num_train_timesteps": int,
    "beta_start": float,
    "beta_end": float,
    "beta_schedule": str,
    "trained_betas": lambda betas: tuple(map(float, betas)),
    "prediction_type": str,
    "timestep_spacing": str,
    "steps_offset": int,
    "rescale_betas_zero_snr": bool,
    "set_alpha_to_one": bool,
    "sigma_min": float,
    "sigma_max": float,
}


@dataclass(frozen=True, slots=True)
class EdmNoise:
    """The continuous noise of an EDM checkpoint: any sigma in a range, and no timesteps.

    The network is told 0.25 ln(sigma). The fields are those of diffusers' EDM schedulers.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = KARRAS_RHO
    spacing: SigmaSpacing = SigmaSpacing.KARRAS  # or EXPONENTIAL: its own


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """The noise that a checkpoint was trained on, and how it spaces its steps.

    The fields are those of `scheduler_config.json`; `edm` replaces all but `prediction_type`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False  # whether DDIM's last step goes to sigma 0
    sigma_min: float | None = None  # ends of Karras and exponential sigmas, if not the trained ones
    sigma_max: float | None = None
    edm: EdmNoise | None = None

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "NoiseConfig":
        """Read the fields from a `scheduler_config.json`, with diffusers' defaults for absent ones.

        Raises `CheckpointError` for a value that is not supported. `scheduler_config` reads the
        class and the options beside these.
        """
        present = {key: value for key, value in config.items() if value is not None}
        for key, supported in SUPPORTED_NOISE.items():
            if present.get(key, supported[0]) not in supported:
                choices = ", ".join(supported)
                raise CheckpointError(
                    f"has {key}={present[key]!r} in {SCHEDULER_CONFIG}; supported: {choices}"
                )
        fields = {}
        for key, kind in _KINDS.items():
            if key in present:
                try:
                    fields[key] = kind(present[key])
                except (TypeError, ValueError):
                    raise CheckpointError(
                        f"has {key}={present[key]!r} in {SCHEDULER_CONFIG}, which can't be read"
                    ) from None
        return cls(**fields)

    @property
    def preconditioning(self) -> Preconditioning:
        """What its network receives and predicts."""
        output = NetworkOutput(self.prediction_type)
        if self.edm is None:
            return Preconditioning(output)
        if output is NetworkOutput.NOISE:  # diffusers' EDM classes call Karras' output "epsilon"
            output = NetworkOutput.EDM
        return Preconditioning(output, self.edm.sigma_data)

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that can draw with it: for EDM those that step in sigmas."""
        return tuple(sampler for sampler in Sampler if self.edm is None or _is_continuous(sampler))

    def has_same_noise_as(self, other: "NoiseConfig") -> bool:
        """Return whether each timestep has the same sigma in both, so that samples can move."""
        if self.edm or other.edm:
            return self.edm == other.edm
        return training_sigmas(self) == training_sigmas(other)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one image, from noise to picture.

    A step of a schedule is one network evaluation: a sampler has `nfe` of them for each step that a
    request asks for.

    Step `i` evaluates the network at `sigmas[i]` and `timesteps[i]`, and moves the latents to
    `target_sigmas[i]`. The next step takes them to be at `sigmas[i + 1]`, which is the same sigma
    except for DDIM. The last of `sigmas` is 0. Heun's evaluations come in pairs that go from
    `sigmas[2 k]` to `sigmas[2 k + 2]`; the last one has no second.
    """

    sigmas: tuple[float, ...]  # len(timesteps) + 1
    timesteps: tuple[float, ...]
    target_sigmas: tuple[float, ...]  # len(timesteps)
    start_index: int  # the first step to run: above 0 for image-to-image
    handoff_index: int  # the first step of the refiner
    init_noise_sigma: float  # standard deviation of the noise that text-to-image starts from

    def __len__(self) -> int:
        """Return the number of steps, including those before `start_index`."""
        return len(self.timesteps)


def make_schedule(
    config: NoiseConfig, sampler: Sampler, steps: int, strength: float | None, handoff: float
) -> Schedule:
    """Return the schedule that diffusers sets for the same values.

    A strength too small for one step runs one step, where diffusers fails. The hand-off is
    diffusers' `denoising_end`, a cut in timesteps: base keeps `t >= round(T - handoff * T)`. EDM
    has no training timesteps, so its hand-off is a share of the steps. A pair of Heun's goes to
    the stage of its first evaluation, where diffusers runs one step twice. Raises
    `InvalidRequest` for a sampler that the noise does not offer.
    """
    check_sampler(config, sampler)
    solver, total = sampler.definition, config.num_train_timesteps
    if sampler.spacing is SigmaSpacing.TRAILING:
        config = replace(config, timestep_spacing="trailing")
    timesteps, sigmas = _timesteps_and_sigmas(config, solver, sampler.spacing, steps)
    start = steps - steps_after_strength(steps, strength)
    if handoff >= 1:
        handoff_index = steps
    elif handoff <= 0:
        handoff_index = 0
    elif config.edm:
        handoff_index = round(handoff * steps)
    else:
        cutoff = round(total - handoff * total)
        handoff_index = sum(t >= cutoff for t in timesteps)
    init_noise_sigma = max(sigmas[0], sigmas[-1])
    is_at_unit_variance = config.edm or not solver.has_fractional_timesteps
    if is_at_unit_variance or config.timestep_spacing == "leading":
        init_noise_sigma = sqrt(init_noise_sigma**2 + 1)
    if solver.nfe == 2:
        timesteps, sigmas = _paired(timesteps), _paired(sigmas)
        start, handoff_index = 2 * start, min(2 * handoff_index, len(timesteps))
    target_sigmas = [*sigmas[1:], 0.0]
    if solver.has_fixed_stride:
        train, stride = training_sigmas(config), total // steps
        target_sigmas = [interpolate(train, max(0, t - stride)) for t in timesteps]
        if config.set_alpha_to_one and timesteps[-1] < stride:
            target_sigmas[-1] = 0.0
    return Schedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        target_sigmas=tuple(target_sigmas),
        start_index=start,
        handoff_index=max(start, handoff_index),
        init_noise_sigma=init_noise_sigma,
    )


def check_sampler(config: NoiseConfig, sampler: Sampler) -> None:
    """Raise `InvalidRequest` for a sampler that the noise of a checkpoint does not offer."""
    if config.edm and not _is_continuous(sampler):
        raise InvalidRequest(
            "sampler",
            f"is {sampler}, which steps by training timesteps, and this model has none (EDM); "
            f"choose one of {', '.join(config.samplers)}",
        )


def _is_continuous(sampler: Sampler) -> bool:
    return not sampler.definition.needs_timesteps and sampler.spacing is not SigmaSpacing.TRAILING


def _paired(values: list[float]) -> list[float]:
    """Repeat each value but the first: Heun's second evaluation is where the next step begins."""
    return values[:1] + [value for value in values[1:] for _ in range(2)]


@lru_cache(maxsize=8)
def training_sigmas(config: NoiseConfig) -> tuple[float, ...]:
    """Return sigma, the ratio of noise to signal, of each training timestep, rising."""
    n = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = list(config.trained_betas)
    elif config.beta_schedule == "squaredcos_cap_v2":
        betas = cosine_betas(n)
    else:
        power = 2 if config.beta_schedule == "scaled_linear" else 1
        betas = power_betas(n, config.beta_start, config.beta_end, power)
    return sigmas_of_betas(betas, zero_snr=config.rescale_betas_zero_snr)


def _timesteps_and_sigmas(
    config: NoiseConfig, solver: SamplerDef, spacing: SigmaSpacing, steps: int
) -> tuple[list[float], list[float]]:
    """Return falling timesteps and their sigmas, one of each per requested step."""
    if config.edm:
        return _edm_timesteps_and_sigmas(config.edm, spacing, steps)
    train = training_sigmas(config)
    timesteps = _spaced_timesteps(config, solver, steps)
    sigmas = [interpolate(train, t) for t in timesteps]
    if spacing not in (SigmaSpacing.KARRAS, SigmaSpacing.EXPONENTIAL):
        return timesteps, sigmas
    ends = (train[-1], train[0])
    if solver.has_fractional_timesteps:
        ends = (sigmas[0], sigmas[-1])
    highest = ends[0] if config.sigma_max is None else config.sigma_max
    lowest = ends[1] if config.sigma_min is None else config.sigma_min
    sigmas = spaced_sigmas(spacing, highest, lowest, KARRAS_RHO, steps)
    log_train = [f32(log(sigma)) for sigma in train]
    timesteps = [sigma_to_timestep(sigma, log_train) for sigma in sigmas]
    if solver.has_fractional_timesteps:
        return timesteps, sigmas
    is_cosine = config.beta_schedule == "squaredcos_cap_v2"
    if spacing is SigmaSpacing.EXPONENTIAL or (solver.truncates_cosine_grid and is_cosine):
        return [float(int(t)) for t in timesteps], sigmas  # 998.99... becomes 998
    return [float(round(t)) for t in timesteps], sigmas


def _spaced_timesteps(config: NoiseConfig, solver: SamplerDef, steps: int) -> list[float]:
    """Return falling timesteps, spaced as the checkpoint or the solver says."""
    total, choices = config.num_train_timesteps, solver.distilled_steps
    spacing = solver.timestep_spacing or config.timestep_spacing
    intervals = steps + solver.has_extra_interval
    if choices is not None:
        stride = total // choices
        return [float((choices - i * choices // steps) * stride - 1) for i in range(steps)]
    if spacing == "leading":
        stride = total // intervals
        rising = [i * stride + config.steps_offset for i in range(intervals)]
        return [float(t) for t in reversed(rising)][:steps]
    if spacing == "linspace":
        gap = (total - 1) / max(1, intervals - 1)
        falling = list(reversed([i * gap for i in range(intervals)]))[:steps]
        if solver.has_fractional_timesteps:
            return falling
        return [float(round(t)) for t in falling]
    gap = total / steps
    return [float(round(total - i * gap) - 1) for i in range(ceil(total / gap))][:steps]


def _edm_timesteps_and_sigmas(
    edm: EdmNoise, spacing: SigmaSpacing, steps: int
) -> tuple[list[float], list[float]]:
    """Return what `_timesteps_and_sigmas` does for an EDM checkpoint, by its own range and rho."""
    own = edm.spacing if spacing is SigmaSpacing.CHECKPOINT else spacing
    sigmas = spaced_sigmas(own, edm.sigma_max, edm.sigma_min, edm.rho, steps)
    return [0.25 * log(sigma) for sigma in sigmas], sigmas
