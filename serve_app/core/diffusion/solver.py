"""One step of each solver, as arithmetic on anything with + and *.

No tensors, no networks and no loops: a function takes numbers and returns weights. In the noise
convention x = picture + sigma * noise every solver here is linear in what it sees,

    x' = a * x + b * denoised + c1 * state1 + c2 * state2 + ... + d * noise

and so is the state that it keeps, so a batch may mix solvers: each row has its own weights. Names
as in k-diffusion's sampling.py; `ratio` is the share of x that a step keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, hypot, log, sqrt
from typing import Any, TypeVar, assert_never

from serve_app.core.diffusion.samplers import Solver
from serve_app.core.diffusion.schedule import Schedule

T = TypeVar("T")  # what is summed: tensors, or numbers in a proof

_LCM_SIGMA_DATA, _LCM_TIMESTEP_SCALING = 0.5, 10.0  # consistency distillation, as in diffusers


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a sum: of x, the denoised x, the solver's state and fresh noise."""

    x: float = 0.0
    denoised: float = 0.0
    state: tuple[float, ...] = ()
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class SolverStep:
    """One step: the weights of the next x, and of each part of the next state."""

    x_next: Weights
    state: tuple[Weights, ...] = ()


_X, _DENOISED = Weights(x=1.0), Weights(denoised=1.0)


def solver_step(solver: Solver, schedule: Schedule, index: int, state_size: int) -> SolverStep:
    """Return the weights of step `index`, which goes from its sigma to the next one.

    `state_size` is the length of the state so far. With 0, as after a hand-off or where an image
    enters late, a solver takes a first-order step.
    """
    sigmas = schedule.sigmas
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    match solver:
        case Solver.EULER_A:
            return _ancestral(sigma, sigma_next)
        case Solver.HEUN:
            return _heun(sigmas, index, state_size)
        case Solver.DPMPP_2M | Solver.DPMPP_2M_SDE:
            return _dpmpp_2m(sigmas, index, state_size, sde=solver is Solver.DPMPP_2M_SDE)
        case Solver.DPMPP_SDE:
            return _dpmpp_sde(sigmas, index, state_size)
        case Solver.UNIPC:
            return _unipc(sigmas, index, state_size)
        case Solver.LCM:
            return _lcm(sigma, sigma_next, schedule.timesteps[index])
        case Solver.EULER | Solver.DDIM:
            return SolverStep(_euler(sigma, schedule.target_sigmas[index], sigma_next))
        case _:
            assert_never(solver)


def terms(
    weights: Weights, x: T | None, denoised: T, state: Sequence[T], noise: T | None
) -> list[tuple[float, T]]:
    """Return the terms of a weighted sum. One of weight 0 is none of them, so it may be None."""
    weighted: list[tuple[float, T | None]] = [
        (weights.x, x),
        (weights.denoised, denoised),
        *zip(weights.state, state, strict=False),
        (weights.noise, noise),
    ]
    return [(weight, term) for weight, term in weighted if weight and term is not None]


def combine(weights: Weights, x: Any, denoised: Any, state: Sequence[Any], noise: Any) -> Any:
    """Return the weighted sum."""
    products = [weight * term for weight, term in terms(weights, x, denoised, state, noise)]
    return sum(products[1:], start=products[0])


def _euler(sigma: float, target: float, sigma_next: float) -> Weights:
    """Karras et al. 2022, algorithm 2 without churn; DDIM is Song et al. 2021, equation 12.

    Both are the same in this convention, with one exception: diffusers' DDIM steps to
    t - T // steps, which need not be the next timestep, and the last step ends above sigma 0.
    `scale` re-expresses the result at `sigma_next`, where the next step expects it.
    """
    scale = hypot(1, target) / hypot(1, sigma_next)
    ratio = target / sigma
    return Weights(x=ratio / scale, denoised=(1 - ratio) / scale)


def _ancestral(sigma: float, sigma_next: float) -> SolverStep:
    """k-diffusion's split of a step into `sigma_down` and `sigma_up`."""
    sigma_up = sqrt(max(0.0, sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    sigma_down = sqrt(max(0.0, sigma_next**2 - sigma_up**2))
    ratio = sigma_down / sigma
    return SolverStep(Weights(x=ratio, denoised=1 - ratio, noise=sigma_up))


def _heun(sigmas: Sequence[float], index: int, state_size: int) -> SolverStep:
    """Karras et al. 2022, algorithm 1 without churn, one network evaluation at a time.

    The first of a pair is an Euler step that keeps its slope and its x. The second, at the end of
    that step, goes again from that x by the mean of both slopes.
    """
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    if state_size:
        dt = sigma - sigmas[index - 1]
        slope = dt / (2 * sigma)
        return SolverStep(Weights(x=slope, denoised=-slope, state=(dt / 2, 1.0)))
    x_next = _euler(sigma, sigma_next, sigma_next)
    if sigma_next == 0:
        return SolverStep(x_next)
    return SolverStep(x_next, (Weights(x=1 / sigma, denoised=-1 / sigma), _X))


def _dpmpp_2m(sigmas: Sequence[float], index: int, state_size: int, *, sde: bool) -> SolverStep:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, midpoint; the SDE is in its appendix."""
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    ratio = (sigma_next / sigma) ** 2 if sde else sigma_next / sigma
    noise = sigma_next * sqrt(1 - ratio) if sde else 0.0
    correction = _midpoint(ratio, sigmas, index) if state_size and sigma_next > 0 else 0.0
    x_next = Weights(ratio, 1 - ratio + correction, (-correction,), noise)
    return SolverStep(x_next, (_DENOISED,))


def _dpmpp_sde(sigmas: Sequence[float], index: int, state_size: int) -> SolverStep:
    """Lu et al. 2022, singlestep second-order SDE, one network evaluation at a time.

    The second of a pair goes from the x of the first. The last evaluation is of first order.
    """
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    if not (state_size and index % 2 and sigma_next > 0):
        ratio = (sigma_next / sigma) ** 2
        x_next = Weights(x=ratio, denoised=1 - ratio, noise=sigma_next * sqrt(1 - ratio))
        return SolverStep(x_next, (_X, _DENOISED))
    start = sigmas[index - 1]
    ratio = (sigma_next / start) ** 2
    correction = (1 - ratio) * log(start / sigma_next) / (2 * log(start / sigma))
    state = (ratio, 1 - ratio - correction)
    return SolverStep(Weights(0.0, correction, state, sigma_next * sqrt(1 - ratio)))


def _midpoint(ratio: float, sigmas: Sequence[float], index: int) -> float:
    """Return the weight of the difference between the last two denoised."""
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    return (1 - ratio) * log(sigma / sigma_next) / (2 * log(sigmas[index - 1] / sigma))


def _unipc(sigmas: Sequence[float], index: int, state_size: int) -> SolverStep:
    """Zhao et al. 2023 (UniPC), order 2 with B(h) = e^h - 1.

    UniC corrects x by what the network says of it, then UniP, a multistep predictor, goes on. The
    state is the corrected x and the last two denoised.
    """
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    ratio = sigma_next / sigma
    if not state_size:
        return SolverStep(Weights(x=ratio, denoised=1 - ratio), (_X, _DENOISED))
    corrected = _corrected(sigmas, index, state_size)
    correction = _midpoint(ratio, sigmas, index) if sigma_next > 0 else 0.0
    last_x, last_denoised, *older = (ratio * weight for weight in corrected.state)
    x_next = Weights(
        denoised=ratio * corrected.denoised + 1 - ratio + correction,
        state=(last_x, last_denoised - correction, *older),
    )
    return SolverStep(x_next, (corrected, _DENOISED, Weights(state=(0.0, 1.0))))


def _corrected(sigmas: Sequence[float], index: int, state_size: int) -> Weights:
    """Return the weights of x corrected by UniC, of the order that the last step had.

    The state is x before that step, its denoised, and the denoised before it.
    """
    sigma, sigma_last = sigmas[index], sigmas[index - 1]
    ratio = sigma / sigma_last
    if state_size < 3:
        return Weights(0.0, (1 - ratio) / 2, (ratio, (1 - ratio) / 2))
    h = log(sigma_last / sigma)
    r = log(sigma_last / sigmas[index - 2]) / h  # where the oldest denoised is, in units of h
    phi = expm1(-h)
    b1 = (phi / -h - 1) / phi
    b2 = ((phi / -h - 1) / -h - 0.5) * 2 / phi
    newest = (b2 - r * b1) / (1 - r)
    oldest = (b1 - newest) / r
    state = (ratio, (1 - ratio) * (1 - newest - oldest), (1 - ratio) * oldest)
    return Weights(0.0, (1 - ratio) * newest, state)


def _lcm(sigma: float, sigma_next: float, timestep: float) -> SolverStep:
    """Luo et al. 2023 (LCM), algorithm 3: one leap to the picture, then fresh noise."""
    t = timestep * _LCM_TIMESTEP_SCALING
    c_skip = _LCM_SIGMA_DATA**2 / (t**2 + _LCM_SIGMA_DATA**2)
    c_out = t / hypot(t, _LCM_SIGMA_DATA)
    return SolverStep(Weights(x=c_skip / hypot(1, sigma), denoised=c_out, noise=sigma_next))
