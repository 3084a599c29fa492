"""Solver steps on plain floats, where the right answer is known, and against diffusers."""

import math
from typing import Any, cast

import pytest
import torch

from serve_app.core.diffusion.samplers import Sampler, Solver
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.solver import SolverStep, combine, solver_step
from tests.support.reference_schedulers import stock_scheduler

NOISE = NoiseConfig(1000, 0.00085, 0.012, "scaled_linear", None, "epsilon", "leading", 1, False)


def apply(
    step: SolverStep, x: Any, denoised: Any, state: tuple[Any, ...], noise: Any
) -> tuple[Any, tuple[Any, ...]]:
    x_next = combine(step.x_next, x, denoised, state, noise)
    return x_next, tuple(combine(weights, x, denoised, state, None) for weights in step.state)


def solve(sampler: Sampler, steps: int, denoiser: Any, x: float, noise: float = 0.0) -> float:
    schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
    state: tuple[float, ...] = ()
    for index in range(len(schedule)):
        denoised = denoiser(x, schedule.sigmas[index])
        step = solver_step(sampler.solver, schedule, index, len(state))
        x, state = apply(step, x, denoised, state, noise)
    return x


def schedule_of(*sigmas: float) -> Schedule:
    return Schedule(sigmas, (999.0,) * (len(sigmas) - 1), sigmas[1:], 0, len(sigmas) - 1, 1.0)


SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Return mostly the noise, as a trained network does, from all of its inputs."""
    return 0.9 * x + 0.2 * torch.sin(x + t / 300)


def solve_with_diffusers(sampler: Sampler, steps: int, start: int) -> torch.Tensor:
    scheduler = stock_scheduler(sampler, SDXL)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(start) if hasattr(scheduler, "set_begin_index") else None
    generator = torch.Generator().manual_seed(3)
    x: torch.Tensor = torch.randn(2, 4, 3, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps[start:]:
        output = network(scheduler.scale_model_input(x, t), float(t))
        extra = {"generator": generator} if sampler.definition.is_stochastic else {}
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x


def solve_with_ours(sampler: Sampler, steps: int, start: int) -> torch.Tensor:
    schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 3, generator=generator) * schedule.init_noise_sigma
    if start and not sampler.definition.has_fractional_timesteps:
        x = x / schedule.init_noise_sigma * math.hypot(1, schedule.sigmas[start])  # unit variance
    state: tuple[torch.Tensor, ...] = ()
    for index in range(start, len(schedule)):
        sigma, t = schedule.sigmas[index], schedule.timesteps[index]
        denoised = x - sigma * network(x / math.hypot(1, sigma), t)
        noise = None
        if sampler.definition.is_stochastic:
            noise = torch.randn(x.shape, generator=generator)
        step = solver_step(sampler.solver, schedule, index, len(state))
        x, state = apply(step, x, denoised, state, noise)
    return x


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize(
    ("steps", "start"), [(1, 0), (2, 0), (3, 0), (9, 0), (20, 0), (20, 8), (9, 3)]
)
def test_every_sampler_equals_its_diffusers_class(sampler: Sampler, steps: int, start: int) -> None:
    start *= sampler.nfe
    theirs = solve_with_diffusers(sampler, steps, start)
    ours = solve_with_ours(sampler, steps, start)
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_a_constant_denoiser_is_reached_exactly(sampler: Sampler, steps: int) -> None:
    if steps > (sampler.definition.distilled_steps or steps):
        return
    result = solve(sampler, steps, lambda x, s: 0.25, x=9.0, noise=0.7)
    goal = pytest.approx(0.25, abs=1e-12)
    if sampler.solver is Solver.DDIM:  # ends at a sigma above 0, at unit variance
        schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
        sigma = schedule.target_sigmas[-1]
        goal = pytest.approx(
            (0.25 + 8.75 * sigma / schedule.sigmas[0]) / math.hypot(1, sigma), abs=0.05
        )
    if sampler.solver is Solver.LCM:  # c_skip is above 0
        goal = pytest.approx(0.25, abs=1e-3)
    assert result == goal


@pytest.mark.parametrize("sampler", [s for s in Sampler if not s.definition.is_stochastic])
def test_gaussian_data_has_its_closed_form_and_more_steps_come_closer(
    sampler: Sampler,
) -> None:
    """Data N(0, s^2): D(x, c) = x s^2 / (s^2 + c^2); the ODE ends at x s / sqrt(s^2 + c_max^2)."""
    spread = 0.5
    errors = []
    for steps in (10, 40, 150):
        sigmas = make_schedule(NOISE, sampler, steps, None, 1.0).sigmas
        exact = 3.0 * spread / math.sqrt(spread**2 + sigmas[0] ** 2)
        result = solve(sampler, steps, lambda x, s: x * spread**2 / (spread**2 + s**2), x=3.0)
        errors.append(abs(result - exact))
    assert errors[0] > max(errors[1], errors[2])  # then only the last step, to 0, is off
    assert errors[2] < 0.006


def test_second_order_solvers_are_closer_than_euler() -> None:
    def error(sampler: Sampler) -> float:
        sigmas = make_schedule(NOISE, sampler, 20, None, 1.0).sigmas
        exact = 3.0 * 0.5 / math.sqrt(0.25 + sigmas[0] ** 2)
        return abs(solve(sampler, 20, lambda x, s: x * 0.25 / (0.25 + s**2), x=3.0) - exact)

    for sampler in (Sampler.DPMPP_2M, Sampler.UNIPC, Sampler.HEUN):
        assert error(sampler) < error(Sampler.EULER)


def test_ancestral_noise_adds_up_to_the_next_sigma() -> None:
    """Check that for D = 0 what is left of x and the new noise have the variance of sigma_next."""
    sigmas = (10.0, 6.0, 2.0, 0.0)
    for solver in (Solver.EULER_A, Solver.DPMPP_2M_SDE, Solver.DPMPP_SDE):
        for index in range(2):
            x_next = solver_step(solver, schedule_of(*sigmas), index, 0).x_next
            sigma = math.hypot(x_next.x * sigmas[index], x_next.noise)
            assert sigma == pytest.approx(sigmas[index + 1])


def test_terms_without_a_weight_may_be_none() -> None:
    step = solver_step(Solver.EULER, schedule_of(2.0, 1.0, 0.0), 0, 0)
    assert combine(step.x_next, 4.0, 2.0, (), None) == 3.0


def test_the_last_step_ignores_the_state() -> None:
    for solver in (Solver.DPMPP_2M, Solver.UNIPC):
        state_size = 1 if solver is Solver.DPMPP_2M else 2
        x_next = solver_step(solver, schedule_of(2.0, 1.0, 0.0), 1, state_size).x_next
        assert combine(x_next, 5.0, 0.25, (7.0, 9.0), None) == 0.25


def test_a_solver_without_state_takes_a_first_order_step() -> None:
    euler = solver_step(Solver.EULER, schedule_of(4.0, 2.0, 1.0, 0.5, 0.0), 1, 0).x_next
    for solver in (Solver.DPMPP_2M, Solver.UNIPC, Solver.HEUN):
        x_next = solver_step(solver, schedule_of(4.0, 2.0, 1.0, 0.5, 0.0), 1, 0).x_next
        assert (x_next.x, x_next.denoised) == pytest.approx((euler.x, euler.denoised))


def test_a_solver_without_arithmetic_is_an_error() -> None:
    with pytest.raises(AssertionError, match="rk4"):
        solver_step(cast(Any, "rk4"), schedule_of(2.0, 1.0, 0.0), 0, 0)
