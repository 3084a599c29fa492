"""Arithmetic on sigmas: spaced between two ends, and to and from training timesteps."""

from bisect import bisect_left
from math import exp, log

from serve_app.core.diffusion.samplers import SigmaSpacing


def spaced_sigmas(
    spacing: SigmaSpacing, highest: float, lowest: float, rho: float, steps: int
) -> list[float]:
    """Return falling sigmas, ends included: Karras', or linear in their logarithm."""
    ramp = [i / max(1, steps - 1) for i in range(steps)]
    if spacing is SigmaSpacing.KARRAS:
        high, low = highest ** (1 / rho), lowest ** (1 / rho)
        return [float((high + share * (low - high)) ** rho) for share in ramp]
    return [exp(log(highest) + share * (log(lowest) - log(highest))) for share in ramp]


def sigma_to_timestep(sigma: float, log_sigmas: list[float]) -> float:
    """Return the fractional training timestep of a sigma, linear in its logarithm."""
    target = log(max(sigma, 1e-10))
    above = min(max(bisect_left(log_sigmas, target), 1), len(log_sigmas) - 1)
    low, high = log_sigmas[above - 1], log_sigmas[above]
    return above - 1 + min(max((target - low) / (high - low), 0.0), 1.0)


def interpolate(sigmas: tuple[float, ...], t: float) -> float:
    """Return the sigma at a fractional training timestep, linear between its neighbours."""
    below = min(max(int(t), 0), len(sigmas) - 1)
    above = min(below + 1, len(sigmas) - 1)
    return sigmas[below] + (sigmas[above] - sigmas[below]) * (t - below if below < t else 0.0)
