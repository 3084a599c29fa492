"""Steps on plain floats, where the right answer is known."""

import math

import pytest

from serve_app.core.schedule import NoiseConfig, make_schedule
from serve_app.core.solver import MULTISTEP, STOCHASTIC, apply, update
from serve_app.core.spec import Sampler

NOISE = NoiseConfig(1000, 0.00085, 0.012, "scaled_linear", None, "epsilon", "leading", 1, False)


def solve(sampler: Sampler, steps: int, denoiser, x: float, fresh: float = 0.0) -> float:  # type: ignore[no-untyped-def]
    sigmas = make_schedule(NOISE, sampler, steps, None, 1.0).sigmas
    memory = None
    for index in range(steps):
        denoised = denoiser(x, sigmas[index])
        weights = update(sampler, sigmas, index, remembers=memory is not None)
        x = apply(weights, x, denoised, memory, fresh)
        memory = denoised if sampler in MULTISTEP else None
    return x


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_a_constant_target_is_reached_exactly(sampler: Sampler, steps: int) -> None:
    landed = solve(sampler, steps, lambda x, s: 0.25, x=9.0, fresh=0.7)
    assert landed == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("sampler", sorted(set(Sampler) - STOCHASTIC))
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
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_the_second_order_solver_is_closer_than_the_first() -> None:
    def error(sampler: Sampler) -> float:
        sigmas = make_schedule(NOISE, sampler, 20, None, 1.0).sigmas
        exact = 3.0 * 0.5 / math.sqrt(0.25 + sigmas[0] ** 2)
        return abs(solve(sampler, 20, lambda x, s: x * 0.25 / (0.25 + s**2), x=3.0) - exact)

    assert error(Sampler.DPMPP_2M) < error(Sampler.EULER)


def test_ancestral_noise_keeps_the_level_that_the_schedule_says() -> None:
    """With D = 0 the level left by sigma_down and the fresh noise must add up to the next sigma."""
    sigmas = (10.0, 6.0, 2.0, 0.0)
    for index in range(2):
        weights = update(Sampler.EULER_A, sigmas, index, remembers=False)
        level = math.hypot(weights.keep * sigmas[index], weights.stir)
        assert level == pytest.approx(sigmas[index + 1])


def test_terms_without_a_weight_are_not_touched() -> None:
    weights = update(Sampler.EULER, (2.0, 1.0, 0.0), 0, remembers=False)
    assert apply(weights, 4.0, 2.0, None, None) == 3.0


def test_the_last_step_forgets_the_memory() -> None:
    weights = update(Sampler.DPMPP_2M, (2.0, 1.0, 0.0), 1, remembers=True)
    assert (weights.keep, weights.pull, weights.recall) == (0.0, 1.0, 0.0)
