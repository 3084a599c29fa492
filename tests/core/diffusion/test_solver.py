"""Steps on plain floats, where the right answer is known."""

import math
from typing import Any

import pytest
import torch

from serve_app.core.diffusion.samplers import Sampler, Solver
from serve_app.core.diffusion.schedule import NoiseConfig, Schedule, make_schedule
from serve_app.core.diffusion.solver import SolverStep, combine, solver_step
from tests.support.reference_schedulers import stock_scheduler

NOISE = NoiseConfig(1000, 0.00085, 0.012, "scaled_linear", None, "epsilon", "leading", 1, False)


def step(
    taken: SolverStep, x: Any, denoised: Any, memory: tuple[Any, ...], fresh: Any
) -> tuple[Any, tuple[Any, ...]]:
    moved = combine(taken.x_next, x, denoised, memory, fresh)
    return moved, tuple(combine(mix, x, denoised, memory, None) for mix in taken.state)


def solve(sampler: Sampler, steps: int, denoiser: Any, x: float, fresh: float = 0.0) -> float:
    schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
    memory: tuple[float, ...] = ()
    for index in range(len(schedule)):
        denoised = denoiser(x, schedule.sigmas[index])
        taken = solver_step(sampler.solver, schedule, index, len(memory))
        x, memory = step(taken, x, denoised, memory, fresh)
    return x


def way(*sigmas: float) -> Schedule:
    return Schedule(sigmas, (999.0,) * (len(sigmas) - 1), sigmas[1:], 0, len(sigmas) - 1, 1.0)


SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Like a trained one: mostly the noise, and it depends on all it is given."""
    return 0.9 * x + 0.2 * torch.sin(x + t / 300)


def stock_walk(sampler: Sampler, steps: int, start: int) -> torch.Tensor:
    scheduler = stock_scheduler(sampler, SDXL)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(start) if hasattr(scheduler, "set_begin_index") else None
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 3, generator=draws) * scheduler.init_noise_sigma
    for t in scheduler.timesteps[start:]:
        answer = network(scheduler.scale_model_input(x, t), float(t))
        extra = {"generator": draws} if sampler.definition.is_stochastic else {}
        x = scheduler.step(answer, t, x, **extra).prev_sample
    return x


def our_walk(sampler: Sampler, steps: int, start: int) -> torch.Tensor:
    schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 3, generator=draws) * schedule.init_noise_sigma
    if start:  # where it enters, unit variance or not, is the scale of that level
        bare = sampler.definition.has_fractional_timesteps
        scale = math.hypot(1, schedule.sigmas[start])
        x = x if bare else x / schedule.init_noise_sigma * scale
    memory: tuple[torch.Tensor, ...] = ()
    for index in range(start, len(schedule)):
        sigma, t = schedule.sigmas[index], schedule.timesteps[index]
        denoised = x - sigma * network(x / math.hypot(1, sigma), t)
        fresh = torch.randn(x.shape, generator=draws) if sampler.definition.is_stochastic else None
        taken = solver_step(sampler.solver, schedule, index, len(memory))
        x, memory = step(taken, x, denoised, memory, fresh)
    return x


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize(
    ("steps", "start"), [(1, 0), (2, 0), (3, 0), (9, 0), (20, 0), (20, 8), (9, 3)]
)
def test_a_walk_is_the_one_of_diffusers(sampler: Sampler, steps: int, start: int) -> None:
    start *= sampler.nfe
    theirs, ours = stock_walk(sampler, steps, start), our_walk(sampler, steps, start)
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_a_constant_target_is_reached_exactly(sampler: Sampler, steps: int) -> None:
    if steps > (sampler.definition.distilled_steps or steps):
        return
    landed = solve(sampler, steps, lambda x, s: 0.25, x=9.0, fresh=0.7)
    goal = pytest.approx(0.25, abs=1e-12)
    if sampler.solver is Solver.DDIM:  # leaves a little noise, and is at unit variance then
        schedule = make_schedule(NOISE, sampler, steps, None, 1.0)
        left = schedule.target_sigmas[-1]
        goal = pytest.approx(
            (0.25 + 8.75 * left / schedule.sigmas[0]) / math.hypot(1, left), abs=0.05
        )
    if sampler.solver is Solver.LCM:  # a trace of x goes into the leap
        goal = pytest.approx(0.25, abs=1e-3)
    assert landed == goal


@pytest.mark.parametrize("sampler", [s for s in Sampler if not s.definition.is_stochastic])
def test_gaussian_data_follows_the_closed_form_and_more_steps_come_closer(
    sampler: Sampler,
) -> None:
    """Data N(0, s^2): D(x, c) = x s^2 / (s^2 + c^2); the ODE ends at x s / sqrt(s^2 + c_max^2)."""
    spread = 0.5
    errors = []
    for steps in (10, 40, 150):
        sigmas = make_schedule(NOISE, sampler, steps, None, 1.0).sigmas
        exact = 3.0 * spread / math.sqrt(spread**2 + sigmas[0] ** 2)
        landed = solve(sampler, steps, lambda x, s: x * spread**2 / (spread**2 + s**2), x=3.0)
        errors.append(abs(landed - exact))
    assert errors[0] > max(errors[1], errors[2])  # then the last leap, to 0, is all that is left
    assert errors[2] < 0.006


def test_the_second_order_solver_is_closer_than_the_first() -> None:
    def error(sampler: Sampler) -> float:
        sigmas = make_schedule(NOISE, sampler, 20, None, 1.0).sigmas
        exact = 3.0 * 0.5 / math.sqrt(0.25 + sigmas[0] ** 2)
        return abs(solve(sampler, 20, lambda x, s: x * 0.25 / (0.25 + s**2), x=3.0) - exact)

    for sampler in (Sampler.DPMPP_2M, Sampler.UNIPC, Sampler.HEUN):
        assert error(sampler) < error(Sampler.EULER)


def test_ancestral_noise_keeps_the_level_that_the_schedule_says() -> None:
    """With D = 0 the level left by sigma_down and the fresh noise must add up to the next sigma."""
    sigmas = (10.0, 6.0, 2.0, 0.0)
    for solver in (Solver.EULER_A, Solver.DPMPP_2M_SDE, Solver.DPMPP_SDE):
        for index in range(2):
            moved = solver_step(solver, way(*sigmas), index, 0).x_next
            level = math.hypot(moved.x * sigmas[index], moved.noise)
            assert level == pytest.approx(sigmas[index + 1])


def test_terms_without_a_weight_are_not_touched() -> None:
    taken = solver_step(Solver.EULER, way(2.0, 1.0, 0.0), 0, 0)
    assert combine(taken.x_next, 4.0, 2.0, (), None) == 3.0


def test_the_last_step_forgets_the_memory() -> None:
    for solver in (Solver.DPMPP_2M, Solver.UNIPC):
        moved = solver_step(
            solver, way(2.0, 1.0, 0.0), 1, 1 if solver is Solver.DPMPP_2M else 2
        ).x_next
        assert combine(moved, 5.0, 0.25, (7.0, 9.0), None) == 0.25


def test_a_solver_that_lost_its_memory_takes_a_first_order_step() -> None:
    euler = solver_step(Solver.EULER, way(4.0, 2.0, 1.0, 0.5, 0.0), 1, 0).x_next
    for solver in (Solver.DPMPP_2M, Solver.UNIPC, Solver.HEUN):
        moved = solver_step(solver, way(4.0, 2.0, 1.0, 0.5, 0.0), 1, 0).x_next
        assert (moved.x, moved.denoised) == pytest.approx((euler.x, euler.denoised))
