"""One step of each solver, as arithmetic on anything with + and *.

Knows no tensors, no networks and no loops: it is handed numbers and gives back weighted sums.
In the noise convention x = picture + sigma * noise every solver here is linear in what it sees,

    x' = a * x + b * denoised + c1 * memory1 + c2 * memory2 + ... + d * fresh_noise

and what it remembers is too, so a batch may mix solvers: each row has its own weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, hypot, log, sqrt
from typing import Any

from serve_app.core.diffusion.schedule import Schedule
from serve_app.core.diffusion.spec import Solver

STOCHASTIC = frozenset({Solver.EULER_A, Solver.DPMPP_2M_SDE, Solver.DPMPP_SDE, Solver.LCM})
_LCM_DATA, _LCM_TIME = 0.5, 10.0  # sigma_data and timestep_scaling of consistency distillation


@dataclass(frozen=True, slots=True)
class Weights:
    """A weighted sum of what a step sees."""

    x: float = 0.0
    denoised: float = 0.0
    state: tuple[float, ...] = ()
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class SolverStep:
    """One step: the new x, and what is remembered after it."""

    x_next: Weights
    state: tuple[Weights, ...] = ()


_X, _DENOISED = Weights(x=1.0), Weights(denoised=1.0)


def solver_step(solver: Solver, schedule: Schedule, index: int, state_size: int) -> SolverStep:
    """The weights of step `index`, from its sigma to the next one.

    `remembered` is how much memory is at hand: without it a solver takes a first-order step, as
    after a hand-off, or where an image enters late.
    """
    sigmas = schedule.sigmas
    now, after = sigmas[index], sigmas[index + 1]
    match solver:
        case Solver.EULER_A:
            return _ancestral(now, after)
        case Solver.HEUN:
            return _heun(sigmas, index, state_size)
        case Solver.DPMPP_2M | Solver.DPMPP_2M_SDE:
            return _dpmpp_2m(sigmas, index, state_size, sde=solver is Solver.DPMPP_2M_SDE)
        case Solver.DPMPP_SDE:
            return _dpmpp_sde(sigmas, index, state_size)
        case Solver.UNIPC:
            return _unipc(sigmas, index, state_size)
        case Solver.LCM:
            return _lcm(now, after, schedule.timesteps[index])
        case _:  # Euler, and DDIM
            return SolverStep(_toward(now, schedule.target_sigmas[index], after))


def combine(weights: Weights, x: Any, denoised: Any, state: Sequence[Any], noise: Any) -> Any:
    """The sum. Terms without a weight are not touched, so they may be None."""
    terms = [(weights.x, x), (weights.denoised, denoised), *zip(weights.state, state, strict=False)]
    terms.append((weights.noise, noise))
    seen = [weight * term for weight, term in terms if weight]
    return sum(seen[1:], start=seen[0])


def _toward(now: float, lands: float, after: float) -> Weights:
    """Euler: Karras et al. 2022, algorithm 2 without churn. DDIM: Song et al. 2021, equation 12,
    which is the same in this convention, but that diffusers' class may land beside the next level,
    and at last above 0; what stands there is read on in the convention of unit variance."""
    unit = hypot(1, lands) / hypot(1, after)
    keep = lands / now
    return Weights(x=keep / unit, denoised=(1 - keep) / unit)


def _ancestral(now: float, after: float) -> SolverStep:
    """k-diffusion's split of the step into sigma_down and sigma_up."""
    up = sqrt(max(0.0, after**2 * (now**2 - after**2) / now**2))
    down = sqrt(max(0.0, after**2 - up**2))
    return SolverStep(Weights(x=down / now, denoised=1 - down / now, noise=up))


def _heun(sigmas: Sequence[float], index: int, remembered: int) -> SolverStep:
    """Karras et al. 2022, algorithm 1 without churn: a step is two calls of the network, an Euler
    step that remembers its slope and where it began, and a second look from where it led."""
    now, after = sigmas[index], sigmas[index + 1]
    if remembered:
        gap = now - sigmas[index - 1]  # of the step: this call looks from its end
        share = gap / (2 * now)
        return SolverStep(Weights(x=share, denoised=-share, state=(gap / 2, 1.0)))
    moved = _toward(now, after, after)
    if after == 0:
        return SolverStep(moved)
    return SolverStep(moved, (Weights(x=1 / now, denoised=-1 / now), _X))


def _dpmpp_2m(sigmas: Sequence[float], index: int, remembered: int, *, sde: bool) -> SolverStep:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, midpoint; as an SDE, its appendix."""
    now, after = sigmas[index], sigmas[index + 1]
    keep = (after / now) ** 2 if sde else after / now
    lean = 0.0
    if remembered and after > 0:
        lean = (1 - keep) * log(now / after) / (2 * log(sigmas[index - 1] / now))
    moved = Weights(keep, 1 - keep + lean, (-lean,), after * sqrt(1 - keep) if sde else 0.0)
    return SolverStep(moved, (_DENOISED,))


def _dpmpp_sde(sigmas: Sequence[float], index: int, remembered: int) -> SolverStep:
    """Lu et al. 2022, the singlestep second-order SDE: two calls of the network make a step, and
    the second goes from where the first began. The last call is always of first order."""
    now, after = sigmas[index], sigmas[index + 1]
    if not (remembered and index % 2 and after > 0):
        keep = (after / now) ** 2
        moved = Weights(x=keep, denoised=1 - keep, noise=after * sqrt(1 - keep))
        return SolverStep(moved, (_X, _DENOISED))
    began = sigmas[index - 1]
    keep = (after / began) ** 2
    lean = (1 - keep) * log(began / after) / (2 * log(began / now))
    return SolverStep(Weights(0.0, lean, (keep, 1 - keep - lean), after * sqrt(1 - keep)))


def _unipc(sigmas: Sequence[float], index: int, remembered: int) -> SolverStep:
    """Zhao et al. 2023 (UniPC), order 2, B(h) = e^h - 1: x is corrected by what the network says of
    it, then a multistep predictor goes on. Remembers the corrected x and two denoised."""
    now, after = sigmas[index], sigmas[index + 1]
    here = _X if remembered == 0 else _corrected(sigmas, index, remembered)
    keep = after / now
    lean = 0.0
    if remembered and after > 0:
        lean = (1 - keep) * log(now / after) / (2 * log(sigmas[index - 1] / now))
    before = (
        (keep * here.state[1] - lean, *(keep * w for w in here.state[2:])) if remembered else ()
    )
    moved = Weights(
        x=keep * here.x,
        denoised=keep * here.denoised + 1 - keep + lean,
        state=(keep * here.state[0], *before) if remembered else (),
    )
    older = (Weights(state=(0.0, 1.0)),) if remembered else ()
    return SolverStep(moved, (here, _DENOISED, *older))


def _corrected(sigmas: Sequence[float], index: int, remembered: int) -> Weights:
    """UniC of the order that the step before had: memory is its x, its denoised, the one before."""
    began, now = sigmas[index - 1], sigmas[index]
    keep = now / began
    if remembered < 3:
        return Weights(0.0, (1 - keep) / 2, (keep, (1 - keep) / 2))
    width = log(began / now)
    back = log(began / sigmas[index - 2]) / width  # where the older denoised stands, in widths
    phi = expm1(-width)
    first = (phi / -width - 1) / phi
    second = ((phi / -width - 1) / -width - 0.5) * 2 / phi
    newest = (second - back * first) / (1 - back)
    oldest = (first - newest) / back
    pull = 1 - keep
    return Weights(0.0, pull * newest, (keep, pull * (1 - newest - oldest), pull * oldest))


def _lcm(now: float, after: float, timestep: float) -> SolverStep:
    """Luo et al. 2023 (LCM), algorithm 3: to the picture in one leap, and noise again."""
    time = timestep * _LCM_TIME
    skip = _LCM_DATA**2 / (time**2 + _LCM_DATA**2)
    out = time / hypot(time, _LCM_DATA)
    return SolverStep(Weights(x=skip / hypot(1, now), denoised=out, noise=after))
