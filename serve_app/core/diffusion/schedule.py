"""The noise levels and timesteps of one image, as plain floats, and where base hands over.

Knows no tensors and no checkpoint files: the caller passes `scheduler_config.json` as a mapping.
Spacings: Lin et al. 2023, table 2. Karras levels: Karras et al. 2022, equation 5 (rho 7).
Every schedule equals the one of the diffusers class that `Solver` names, whose families differ in
where they count from, what they take levels between, and how they round.
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

from serve_app.core.diffusion.spec import LCM_MAX_STEPS, Sampler, SigmaSpacing, Solver
from serve_app.core.errors import CheckpointError

KARRAS_RHO = 7.0
# Families of diffusers' classes: how they count and round.
_VARIANCE_EXPLODING = frozenset({Solver.EULER, Solver.EULER_A, Solver.HEUN})
_ONE_MORE = frozenset({Solver.DPMPP_2M, Solver.DPMPP_2M_SDE, Solver.DPMPP_SDE, Solver.UNIPC})
_LEGAL = {  # settings that bend the schedule, and the values of them that are understood
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
    """How a checkpoint was trained to see noise: the facts of its `scheduler_config.json`."""

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
        """The facts in a `scheduler_config.json`; absent ones take diffusers' defaults.

        Raises `CheckpointError` for a setting that would bend the schedule in a way not known here.
        """
        for key, legal in _LEGAL.items():
            if config.get(key, legal[0]) not in legal:
                raise CheckpointError(
                    f"scheduler_config.json has {key}={config[key]!r}; known here: "
                    f"{', '.join(map(str, legal))}"
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
        """Whether both mean the same noise by a timestep, so that one can continue the other."""
        return training_sigmas(self) == training_sigmas(other)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One image's way from noise to picture.

    Step `i` goes from `sigmas[i]` to `lands[i]` at `timesteps[i]`, and what stands there is read as
    being at `sigmas[i + 1]`, the last of which is 0: the same level, but for DDIM's. Steps before
    `start` are skipped (image-to-image); base ends at `handoff_index`. Every step is one call of
    the network: Heun's come in pairs from `sigmas[2 k]` to `sigmas[2 k + 2]`, but for the last.
    """

    sigmas: tuple[float, ...]  # len(timesteps) + 1
    timesteps: tuple[float, ...]
    target_sigmas: tuple[float, ...]  # len(timesteps)
    start_index: int
    handoff_index: int
    init_noise_sigma: float  # standard deviation of the noise a text-to-image begins with

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def steps_to_run(self) -> int:
        """Steps that are really taken."""
        return len(self) - self.start_index


def make_schedule(
    config: NoiseConfig, sampler: Sampler, steps: int, strength: float | None, handoff: float
) -> Schedule:
    """The schedule that stock diffusers would set for these four numbers.

    `strength` too small for one step takes one step all the same, where diffusers fails.
    The hand-off is diffusers' cut in timesteps: base keeps `t >= round(T - handoff * T)`; a pair of
    Heun's belongs to whom its first call belongs, where diffusers goes over one step twice.
    """
    solver = sampler.solver
    if sampler.spacing is SigmaSpacing.TRAILING:
        config = replace(config, timestep_spacing="trailing")
    timesteps, sigmas = _timesteps_and_sigmas(config, solver, sampler.spacing, steps)
    start = 0 if strength is None else steps - max(1, min(int(steps * strength), steps))
    if handoff >= 1:
        handoff_index = steps
    elif handoff <= 0:
        handoff_index = 0
    else:
        cutoff = round(config.num_train_timesteps - handoff * config.num_train_timesteps)
        handoff_index = sum(t >= cutoff for t in timesteps)
    bare = solver in _VARIANCE_EXPLODING and config.timestep_spacing != "leading"
    highest = max(sigmas[0], sigmas[-1])
    if solver is Solver.HEUN:
        timesteps, sigmas = _paired(timesteps), _paired(sigmas)
        start, handoff_index = 2 * start, min(2 * handoff_index, len(timesteps))
    lands = [*sigmas[1:], 0.0]
    if solver is Solver.DDIM:  # always so many timesteps on, even where the next one is elsewhere
        ahead = config.num_train_timesteps // steps
        lands = [_interpolate(training_sigmas(config), max(0, t - ahead)) for t in timesteps]
    return Schedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        target_sigmas=tuple(lands),
        start_index=start,
        handoff_index=max(start, handoff_index),
        init_noise_sigma=highest if bare else sqrt(highest**2 + 1),
    )


def _paired(values: list[float]) -> list[float]:
    """Each but the first one twice: Heun's second call looks from where the next step begins."""
    return values[:1] + [value for value in values[1:] for _ in range(2)]


@lru_cache(maxsize=8)
def training_sigmas(config: NoiseConfig) -> tuple[float, ...]:
    """The noise level, noise over signal, of each training timestep, rising."""
    kept = _alphas_cumprod(_betas(config))
    if config.rescale_betas_zero_snr:
        kept = [
            *_alphas_cumprod(_rescale_zero_terminal_snr(kept))[:-1],
            2.0**-24,
        ]  # finite, as in diffusers
    return tuple(_f32(sqrt(_f32(_f32(1 - a) / a))) for a in kept)


def _alphas_cumprod(betas: list[float]) -> list[float]:
    """The share of the picture's variance left after each training step."""
    return [_f32(a) for a in accumulate((_f32(1 - beta) for beta in betas), mul)]


def _betas(config: NoiseConfig) -> list[float]:
    if config.trained_betas is not None:
        return list(config.trained_betas)
    n = config.num_train_timesteps
    if config.beta_schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021
        bar = [cos((i / n + 0.008) / 1.008 * pi / 2) ** 2 for i in range(n + 1)]
        return [_f32(min(1 - bar[i + 1] / bar[i], 0.999)) for i in range(n)]
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    low, high = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    gap = _f32(_f32(high - low) / (n - 1))
    rising = [low + gap * i if i < n // 2 else high - gap * (n - 1 - i) for i in range(n)]
    return [_f32(_f32(beta) ** power) for beta in rising]


def _rescale_zero_terminal_snr(kept: list[float]) -> list[float]:
    """The betas after which nothing of the picture is left. Lin et al. 2023, algorithm 1."""
    roots = [_f32(sqrt(a)) for a in kept]
    first, last = roots[0], roots[-1]
    stretch = _f32(first / _f32(first - last))
    bar = [_f32(_f32(_f32(r - last) * stretch) ** 2) for r in roots]
    left = [bar[0], *(_f32(after / before) for before, after in pairwise(bar))]
    return [_f32(1 - a) for a in left]


def _timesteps_and_sigmas(
    config: NoiseConfig, solver: Solver, levels: SigmaSpacing, steps: int
) -> tuple[list[float], list[float]]:
    """Falling timesteps and their sigmas, one for each step."""
    train = training_sigmas(config)
    if solver is Solver.DPMPP_SDE:
        config = replace(config, timestep_spacing="linspace")  # the class knows no other
    timesteps = (
        _lcm_timesteps(config, steps)
        if solver is Solver.LCM
        else _spaced_timesteps(config, solver, steps)
    )
    sigmas = [_interpolate(train, t) for t in timesteps]
    if levels not in (SigmaSpacing.KARRAS, SigmaSpacing.EXPONENTIAL):
        return timesteps, sigmas
    between = (sigmas[0], sigmas[-1]) if solver in _VARIANCE_EXPLODING else (train[-1], train[0])
    fall = _karras if levels is SigmaSpacing.KARRAS else _exponential
    sigmas = [fall(*between, i / max(1, steps - 1)) for i in range(steps)]
    logs = [_f32(log(level)) for level in train]
    timesteps = [_sigma_to_timestep(sigma, logs) for sigma in sigmas]
    if solver in _VARIANCE_EXPLODING:
        return timesteps, sigmas
    multistep = solver in (Solver.DPMPP_2M, Solver.DPMPP_2M_SDE)
    cosine = multistep and config.beta_schedule == "squaredcos_cap_v2"
    if levels is SigmaSpacing.EXPONENTIAL or cosine:
        return [float(int(t)) for t in timesteps], sigmas  # cut, not rounded: 998.99... is 998
    return [float(round(t)) for t in timesteps], sigmas


def _spaced_timesteps(config: NoiseConfig, solver: Solver, steps: int) -> list[float]:
    """Falling timesteps. The DPM solvers count one more interval than the others."""
    total = config.num_train_timesteps
    intervals = steps + (solver in _ONE_MORE)
    if config.timestep_spacing == "leading":
        ratio = total // intervals
        rising = [i * ratio + config.steps_offset for i in range(intervals)]
        return [float(t) for t in reversed(rising)][:steps]
    if config.timestep_spacing == "linspace":
        gap = (total - 1) / max(1, intervals - 1)
        falling = list(reversed([i * gap for i in range(intervals)]))[:steps]
        whole = solver not in _VARIANCE_EXPLODING
        return [float(round(t)) for t in falling] if whole else falling
    ratio_f = total / steps
    return [float(round(total - i * ratio_f) - 1) for i in range(ceil(total / ratio_f))][:steps]


def _lcm_timesteps(config: NoiseConfig, steps: int) -> list[float]:
    """So many of the timesteps that it was distilled at, evenly chosen."""
    ratio = config.num_train_timesteps // LCM_MAX_STEPS
    return [float((LCM_MAX_STEPS - i * LCM_MAX_STEPS // steps) * ratio - 1) for i in range(steps)]


def _karras(highest: float, lowest: float, ramp: float) -> float:
    """The sigma at a share of the way down."""
    high, low = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
    return float((high + ramp * (low - high)) ** KARRAS_RHO)


def _exponential(highest: float, lowest: float, ramp: float) -> float:
    return exp(log(highest) + ramp * (log(lowest) - log(highest)))


def _sigma_to_timestep(sigma: float, logs: list[float]) -> float:
    """The fractional training timestep at a noise level, linear in its logarithm."""
    target = log(max(sigma, 1e-10))
    above = min(max(bisect_left(logs, target), 1), len(logs) - 1)
    low, high = logs[above - 1], logs[above]
    return above - 1 + min(max((target - low) / (high - low), 0.0), 1.0)


def _f32(value: float) -> float:
    """The nearest 32-bit float: diffusers' levels are single precision, and Karras timesteps are
    rounded from them, where the last digit can decide."""
    return float(unpack("f", pack("f", value))[0])


def _interpolate(levels: tuple[float, ...], t: float) -> float:
    below = min(max(int(t), 0), len(levels) - 1)
    above = min(below + 1, len(levels) - 1)
    return levels[below] + (levels[above] - levels[below]) * (t - below if below < t else 0.0)
