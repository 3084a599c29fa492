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

from serve_app.core.diffusion.spec import LCM_STEPS, Levels, Sampler, Solver
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

    train_steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    spacing: str = "linspace"
    offset: int = 0
    zero_terminal_snr: bool = False

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
            train_steps=int(config.get("num_train_timesteps", 1000)),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=str(config.get("beta_schedule", "linear")),
            trained_betas=None if betas is None else tuple(map(float, betas)),
            prediction_type=str(config.get("prediction_type", "epsilon")),
            spacing=str(config.get("timestep_spacing", "linspace")),
            offset=int(config.get("steps_offset", 0)),
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )

    def same_noise(self, other: "NoiseConfig") -> bool:
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
    lands: tuple[float, ...]  # len(timesteps)
    start: int
    handoff_index: int
    initial_scale: float  # standard deviation of the noise a text-to-image begins with

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def steps_to_run(self) -> int:
        """Steps that are really taken."""
        return len(self) - self.start


def make_schedule(
    config: NoiseConfig, sampler: Sampler, steps: int, strength: float | None, handoff: float
) -> Schedule:
    """The schedule that stock diffusers would set for these four numbers.

    `strength` too small for one step takes one step all the same, where diffusers fails.
    The hand-off is diffusers' cut in timesteps: base keeps `t >= round(T - handoff * T)`; a pair of
    Heun's belongs to whom its first call belongs, where diffusers goes over one step twice.
    """
    solver = sampler.solver
    if sampler.levels is Levels.TRAILING:
        config = replace(config, spacing="trailing")
    timesteps, sigmas = _grid(config, solver, sampler.levels, steps)
    start = 0 if strength is None else steps - max(1, min(int(steps * strength), steps))
    if handoff >= 1:
        handoff_index = steps
    elif handoff <= 0:
        handoff_index = 0
    else:
        cutoff = round(config.train_steps - handoff * config.train_steps)
        handoff_index = sum(t >= cutoff for t in timesteps)
    bare = solver in _VARIANCE_EXPLODING and config.spacing != "leading"
    highest = max(sigmas[0], sigmas[-1])
    if solver is Solver.HEUN:
        timesteps, sigmas = _paired(timesteps), _paired(sigmas)
        start, handoff_index = 2 * start, min(2 * handoff_index, len(timesteps))
    lands = [*sigmas[1:], 0.0]
    if solver is Solver.DDIM:  # always so many timesteps on, even where the next one is elsewhere
        ahead = config.train_steps // steps
        lands = [_interpolate(training_sigmas(config), max(0, t - ahead)) for t in timesteps]
    return Schedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(timesteps),
        lands=tuple(lands),
        start=start,
        handoff_index=max(start, handoff_index),
        initial_scale=highest if bare else sqrt(highest**2 + 1),
    )


def _paired(values: list[float]) -> list[float]:
    """Each but the first one twice: Heun's second call looks from where the next step begins."""
    return values[:1] + [value for value in values[1:] for _ in range(2)]


@lru_cache(maxsize=8)
def training_sigmas(config: NoiseConfig) -> tuple[float, ...]:
    """The noise level, noise over signal, of each training timestep, rising."""
    kept = _kept(_betas(config))
    if config.zero_terminal_snr:
        kept = [*_kept(_without_last_signal(kept))[:-1], 2.0**-24]  # finite, as in diffusers
    return tuple(_single(sqrt(_single(_single(1 - a) / a))) for a in kept)


def _kept(betas: list[float]) -> list[float]:
    """The share of the picture's variance left after each training step."""
    return [_single(a) for a in accumulate((_single(1 - beta) for beta in betas), mul)]


def _betas(config: NoiseConfig) -> list[float]:
    if config.trained_betas is not None:
        return list(config.trained_betas)
    n = config.train_steps
    if config.beta_schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021
        bar = [cos((i / n + 0.008) / 1.008 * pi / 2) ** 2 for i in range(n + 1)]
        return [_single(min(1 - bar[i + 1] / bar[i], 0.999)) for i in range(n)]
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    low, high = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    gap = _single(_single(high - low) / (n - 1))
    rising = [low + gap * i if i < n // 2 else high - gap * (n - 1 - i) for i in range(n)]
    return [_single(_single(beta) ** power) for beta in rising]


def _without_last_signal(kept: list[float]) -> list[float]:
    """The betas after which nothing of the picture is left. Lin et al. 2023, algorithm 1."""
    roots = [_single(sqrt(a)) for a in kept]
    first, last = roots[0], roots[-1]
    stretch = _single(first / _single(first - last))
    bar = [_single(_single(_single(r - last) * stretch) ** 2) for r in roots]
    left = [bar[0], *(_single(after / before) for before, after in pairwise(bar))]
    return [_single(1 - a) for a in left]


def _grid(
    config: NoiseConfig, solver: Solver, levels: Levels, steps: int
) -> tuple[list[float], list[float]]:
    """Falling timesteps and their sigmas, one for each step."""
    train = training_sigmas(config)
    if solver is Solver.DPMPP_SDE:
        config = replace(config, spacing="linspace")  # the class knows no other
    timesteps = _lcm(config, steps) if solver is Solver.LCM else _spaced(config, solver, steps)
    sigmas = [_interpolate(train, t) for t in timesteps]
    if levels not in (Levels.KARRAS, Levels.EXPONENTIAL):
        return timesteps, sigmas
    between = (sigmas[0], sigmas[-1]) if solver in _VARIANCE_EXPLODING else (train[-1], train[0])
    fall = _karras if levels is Levels.KARRAS else _exponential
    sigmas = [fall(*between, i / max(1, steps - 1)) for i in range(steps)]
    logs = [_single(log(level)) for level in train]
    timesteps = [_timestep_of(sigma, logs) for sigma in sigmas]
    if solver in _VARIANCE_EXPLODING:
        return timesteps, sigmas
    multistep = solver in (Solver.DPMPP_2M, Solver.DPMPP_2M_SDE)
    cosine = multistep and config.beta_schedule == "squaredcos_cap_v2"
    if levels is Levels.EXPONENTIAL or cosine:
        return [float(int(t)) for t in timesteps], sigmas  # cut, not rounded: 998.99... is 998
    return [float(round(t)) for t in timesteps], sigmas


def _spaced(config: NoiseConfig, solver: Solver, steps: int) -> list[float]:
    """Falling timesteps. The DPM solvers count one more interval than the others."""
    total = config.train_steps
    intervals = steps + (solver in _ONE_MORE)
    if config.spacing == "leading":
        ratio = total // intervals
        rising = [i * ratio + config.offset for i in range(intervals)]
        return [float(t) for t in reversed(rising)][:steps]
    if config.spacing == "linspace":
        gap = (total - 1) / max(1, intervals - 1)
        falling = list(reversed([i * gap for i in range(intervals)]))[:steps]
        whole = solver not in _VARIANCE_EXPLODING
        return [float(round(t)) for t in falling] if whole else falling
    ratio_f = total / steps
    return [float(round(total - i * ratio_f) - 1) for i in range(ceil(total / ratio_f))][:steps]


def _lcm(config: NoiseConfig, steps: int) -> list[float]:
    """So many of the timesteps that it was distilled at, evenly chosen."""
    ratio = config.train_steps // LCM_STEPS
    return [float((LCM_STEPS - i * LCM_STEPS // steps) * ratio - 1) for i in range(steps)]


def _karras(highest: float, lowest: float, way: float) -> float:
    """The sigma at a share of the way down."""
    high, low = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
    return float((high + way * (low - high)) ** KARRAS_RHO)


def _exponential(highest: float, lowest: float, way: float) -> float:
    return exp(log(highest) + way * (log(lowest) - log(highest)))


def _timestep_of(sigma: float, logs: list[float]) -> float:
    """The fractional training timestep at a noise level, linear in its logarithm."""
    target = log(max(sigma, 1e-10))
    above = min(max(bisect_left(logs, target), 1), len(logs) - 1)
    low, high = logs[above - 1], logs[above]
    return above - 1 + min(max((target - low) / (high - low), 0.0), 1.0)


def _single(value: float) -> float:
    """The nearest 32-bit float: diffusers' levels are single precision, and Karras timesteps are
    rounded from them, where the last digit can decide."""
    return float(unpack("f", pack("f", value))[0])


def _interpolate(levels: tuple[float, ...], t: float) -> float:
    below = min(max(int(t), 0), len(levels) - 1)
    above = min(below + 1, len(levels) - 1)
    return levels[below] + (levels[above] - levels[below]) * (t - below if below < t else 0.0)
