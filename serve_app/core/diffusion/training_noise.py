"""The noise of a discrete diffusion model: how much picture is left at each training timestep.

Plain floats, rounded where diffusers rounds to single precision: timesteps are found from these
numbers, where the last digit can decide.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import cos, pi, sqrt
from operator import mul
from struct import pack, unpack


def f32(value: float) -> float:
    """Return the nearest 32-bit float."""
    return float(unpack("f", pack("f", value))[0])


def sigmas_of_betas(betas: Sequence[float], *, zero_snr: bool) -> tuple[float, ...]:
    """Return sigma, the ratio of noise to signal, of each training timestep, rising."""
    alphas_cumprod = _alphas_cumprod(betas)
    if zero_snr:
        rescaled = _alphas_cumprod(_rescale_zero_terminal_snr(alphas_cumprod))
        alphas_cumprod = [*rescaled[:-1], 2.0**-24]  # keeps sigma finite, as in diffusers
    return tuple(f32(sqrt(f32(f32(1 - alpha) / alpha))) for alpha in alphas_cumprod)


def cosine_betas(n: int) -> list[float]:
    """Return Nichol & Dhariwal's betas (2021), diffusers' squaredcos_cap_v2."""
    bar = [cos((i / n + 0.008) / 1.008 * pi / 2) ** 2 for i in range(n + 1)]
    return [f32(min(1 - bar[i + 1] / bar[i], 0.999)) for i in range(n)]


def power_betas(n: int, start: float, end: float, power: int) -> list[float]:
    """Return betas whose root of that power rises linearly: 1 for linear, 2 for scaled_linear."""
    low, high = start ** (1 / power), end ** (1 / power)
    step = f32(f32(high - low) / (n - 1))
    rising = [low + step * i if i < n // 2 else high - step * (n - 1 - i) for i in range(n)]
    return [f32(f32(beta) ** power) for beta in rising]


def _alphas_cumprod(betas: Sequence[float]) -> list[float]:
    """Return the share of the picture's variance that is left at each training timestep."""
    return [f32(alpha) for alpha in accumulate((f32(1 - beta) for beta in betas), mul)]


def _rescale_zero_terminal_snr(alphas_cumprod: list[float]) -> list[float]:
    """Return betas after which no signal is left. Lin et al. 2023, algorithm 1."""
    roots = [f32(sqrt(alpha)) for alpha in alphas_cumprod]
    first, last = roots[0], roots[-1]
    scale = f32(first / f32(first - last))
    bar = [f32(f32(f32(root - last) * scale) ** 2) for root in roots]
    alphas = [bar[0], *(f32(alpha / previous) for previous, alpha in pairwise(bar))]
    return [f32(1 - alpha) for alpha in alphas]
