"""The sigmas and timesteps of one image, as plain floats, and where base hands over to the refiner.

No tensors and no files: the caller passes `scheduler_config.json` as a mapping. Timestep spacings:
Lin et al. 2023, table 2. Karras sigmas: Karras et al. 2022, equation 5 with rho 7. Every schedule
equals that of the sampler's diffusers class. These classes differ in how they count and round
timesteps, and between which ends they space sigmas: see `SamplerDef`.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import ceil, cos, exp, log, pi, sqrt
from operator import mul
from struct import pack, unpack
from typing import Any

from serve_app.core.diffusion.samplers import Sampler, SamplerDef, SigmaSpacing
from serve_app.core.diffusion.spec import steps_after_strength
from serve_app.core.errors import CheckpointError

KARRAS_RHO = 7.0
_SUPPORTED = {  # settings that change the schedule: diffusers' default first, then what else works
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
    "use_flow_sigmas": (False,),
    "thresholding": (False,),
}


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """The noise that a checkpoint was trained on, as in its `scheduler_config.json`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "NoiseConfig":
        """Read a `scheduler_config.json`, with diffusers' defaults for absent keys.

        Raises `CheckpointError` for a value that would change the schedule in an unsupported way.
        """
        for key, supported in _SUPPORTED.items():
            if config.get(key, supported[0]) not in supported:
                choices = ", ".join(map(str, supported))
                raise CheckpointError(
                    f"has {key}={config[key]!r}; supported: {choices}",
                    subject="scheduler_config.json",
                )
        betas = config.get("trained_betas")
        return cls(
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=str(config.get("beta_schedule", "linear")),
            trained_betas=None if betas is None else tuple(map(float, betas)),
            prediction_type=str(config.get("prediction_type", "epsilon")),
            timestep_spacing=str(config.get("timestep_spacing", "linspace")),
            steps_offset=int(config.get("steps_offset", 0)),
            rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )

    def has_same_noise_as(self, other: "NoiseConfig") -> bool:
        """Return whether each timestep has the same sigma in both, so that samples can move."""
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
    diffusers' `denoising_end`, a cut in timesteps: base keeps `t >= round(T - handoff * T)`. A pair
    of Heun's goes to the stage of its first evaluation, where diffusers runs one step twice.
    """
    solver, total = sampler.definition, config.num_train_timesteps
    if sampler.spacing is SigmaSpacing.TRAILING:
        config = replace(config, timestep_spacing="trailing")
    timesteps, sigmas = _timesteps_and_sigmas(config, solver, sampler.spacing, steps)
    start = steps - steps_after_strength(steps, strength)
    if handoff >= 1:
        handoff_index = steps
    elif handoff <= 0:
        handoff_index = 0
    else:
        cutoff = round(total - handoff * total)
        handoff_index = sum(t >= cutoff for t in timesteps)
    init_noise_sigma = max(sigmas[0], sigmas[-1])
    if not solver.has_fractional_timesteps or config.timestep_spacing == "leading":
        init_noise_sigma = sqrt(init_noise_sigma**2 + 1)
    if solver.nfe == 2:
        timesteps, sigmas = _paired(timesteps), _paired(sigmas)
        start, handoff_index = 2 * start, min(2 * handoff_index, len(timesteps))
    target_sigmas = [*sigmas[1:], 0.0]
    if solver.has_fixed_stride:
        train, stride = training_sigmas(config), total // steps
        target_sigmas = [_interpolate(train, max(0, t - stride)) for t in timesteps]
    return Schedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        target_sigmas=tuple(target_sigmas),
        start_index=start,
        handoff_index=max(start, handoff_index),
        init_noise_sigma=init_noise_sigma,
    )


def _paired(values: list[float]) -> list[float]:
    """Repeat each value but the first: Heun's second evaluation is where the next step begins."""
    return values[:1] + [value for value in values[1:] for _ in range(2)]


@lru_cache(maxsize=8)
def training_sigmas(config: NoiseConfig) -> tuple[float, ...]:
    """Return sigma, the ratio of noise to signal, of each training timestep, rising."""
    alphas_cumprod = _alphas_cumprod(_betas(config))
    if config.rescale_betas_zero_snr:
        rescaled = _alphas_cumprod(_rescale_zero_terminal_snr(alphas_cumprod))
        alphas_cumprod = [*rescaled[:-1], 2.0**-24]  # keeps sigma finite, as in diffusers
    return tuple(_f32(sqrt(_f32(_f32(1 - alpha) / alpha))) for alpha in alphas_cumprod)


def _alphas_cumprod(betas: list[float]) -> list[float]:
    """Return the share of the picture's variance that is left at each training timestep."""
    return [_f32(alpha) for alpha in accumulate((_f32(1 - beta) for beta in betas), mul)]


def _betas(config: NoiseConfig) -> list[float]:
    """Return the variance of the noise that each training timestep adds."""
    if config.trained_betas is not None:
        return list(config.trained_betas)
    n = config.num_train_timesteps
    if config.beta_schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021
        bar = [cos((i / n + 0.008) / 1.008 * pi / 2) ** 2 for i in range(n + 1)]
        return [_f32(min(1 - bar[i + 1] / bar[i], 0.999)) for i in range(n)]
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    low, high = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    step = _f32(_f32(high - low) / (n - 1))
    rising = [low + step * i if i < n // 2 else high - step * (n - 1 - i) for i in range(n)]
    return [_f32(_f32(beta) ** power) for beta in rising]


def _rescale_zero_terminal_snr(alphas_cumprod: list[float]) -> list[float]:
    """Return betas after which no signal is left. Lin et al. 2023, algorithm 1."""
    roots = [_f32(sqrt(alpha)) for alpha in alphas_cumprod]
    first, last = roots[0], roots[-1]
    scale = _f32(first / _f32(first - last))
    bar = [_f32(_f32(_f32(root - last) * scale) ** 2) for root in roots]
    alphas = [bar[0], *(_f32(alpha / previous) for previous, alpha in pairwise(bar))]
    return [_f32(1 - alpha) for alpha in alphas]


def _timesteps_and_sigmas(
    config: NoiseConfig, solver: SamplerDef, spacing: SigmaSpacing, steps: int
) -> tuple[list[float], list[float]]:
    """Return falling timesteps and their sigmas, one of each per requested step."""
    train = training_sigmas(config)
    timesteps = _spaced_timesteps(config, solver, steps)
    sigmas = [_interpolate(train, t) for t in timesteps]
    if spacing not in (SigmaSpacing.KARRAS, SigmaSpacing.EXPONENTIAL):
        return timesteps, sigmas
    ends = (train[-1], train[0])
    if solver.has_fractional_timesteps:
        ends = (sigmas[0], sigmas[-1])
    at = _karras if spacing is SigmaSpacing.KARRAS else _exponential
    sigmas = [at(*ends, i / max(1, steps - 1)) for i in range(steps)]
    log_train = [_f32(log(sigma)) for sigma in train]
    timesteps = [_sigma_to_timestep(sigma, log_train) for sigma in sigmas]
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


def _karras(highest: float, lowest: float, ramp: float) -> float:
    """Return the sigma at a share of the way down, `ramp` from 0 to 1."""
    high, low = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
    return float((high + ramp * (low - high)) ** KARRAS_RHO)


def _exponential(highest: float, lowest: float, ramp: float) -> float:
    """Return the sigma at a share of the way down, linear in its logarithm."""
    return exp(log(highest) + ramp * (log(lowest) - log(highest)))


def _sigma_to_timestep(sigma: float, log_sigmas: list[float]) -> float:
    """Return the fractional training timestep of a sigma, linear in its logarithm."""
    target = log(max(sigma, 1e-10))
    above = min(max(bisect_left(log_sigmas, target), 1), len(log_sigmas) - 1)
    low, high = log_sigmas[above - 1], log_sigmas[above]
    return above - 1 + min(max((target - low) / (high - low), 0.0), 1.0)


def _f32(value: float) -> float:
    """Return the nearest 32-bit float.

    Diffusers computes sigmas in single precision and rounds Karras timesteps from them, where the
    last digit can decide.
    """
    return float(unpack("f", pack("f", value))[0])


def _interpolate(sigmas: tuple[float, ...], t: float) -> float:
    """Return the sigma at a fractional training timestep, linear between its neighbours."""
    below = min(max(int(t), 0), len(sigmas) - 1)
    above = min(below + 1, len(sigmas) - 1)
    return sigmas[below] + (sigmas[above] - sigmas[below]) * (t - below if below < t else 0.0)
