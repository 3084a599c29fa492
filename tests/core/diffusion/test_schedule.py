"""Schedules against the diffusers class of each sampler, value by value."""

from dataclasses import asdict
from typing import Any

import pytest

from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing, Solver
from serve_app.core.diffusion.schedule import EdmNoise, NoiseConfig, make_schedule
from serve_app.core.diffusion.scheduler_config import read_scheduler
from serve_app.core.errors import CheckpointError, InvalidRequest
from tests.support.reference_schedulers import stock_edm_scheduler, stock_scheduler

SDXL: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
CONFIGS = [
    SDXL,
    SDXL | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    SDXL | {"timestep_spacing": "linspace", "steps_offset": 0},
    SDXL | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    SDXL | {"beta_schedule": "linear"},
    SDXL | {"trained_betas": [0.0001 + 0.00002 * i for i in range(1000)]},
    SDXL | {"beta_schedule": "squaredcos_cap_v2"},
]
NOISE = NoiseConfig.from_scheduler_config(SDXL)


def diffusers_scheduler(sampler: Sampler, config: dict[str, Any], steps: int) -> Any:
    scheduler = stock_scheduler(sampler, config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values()))[:60])
def test_sigmas_and_timesteps_equal_those_of_diffusers(
    sampler: Sampler, config: dict[str, Any]
) -> None:
    noise = NoiseConfig.from_scheduler_config(config)
    if config.get("rescale_betas_zero_snr") and sampler.solver in (Solver.HEUN, Solver.DPMPP_SDE):
        return  # these two classes ignore the setting; this service does not
    is_infinite = sampler.solver in (Solver.DDIM, Solver.LCM)  # 4096 in the others, and here
    first = 1 if config.get("rescale_betas_zero_snr") and is_infinite else 0
    for steps in (2, 3, 4, 5, 9, 18, 20, 25, 30, 50, 87, 99, 150):
        if steps > (sampler.definition.distilled_steps or steps):
            continue
        theirs = diffusers_scheduler(sampler, config, steps)
        ours = make_schedule(noise, sampler, steps, None, 1.0)
        # Timesteps between two trained ones come from single precision in diffusers.
        assert list(ours.timesteps) == pytest.approx(theirs.timesteps.tolist(), abs=2e-3)
        sigmas = theirs.sigmas.tolist() if hasattr(theirs, "sigmas") else sigmas_of(theirs)
        assert list(ours.sigmas)[first:] == pytest.approx(sigmas[first:], rel=1e-4)
        if sampler.definition.has_fractional_timesteps:
            assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)


def sigmas_of(scheduler: Any) -> list[float]:
    """Return the sigmas of a class that has only timesteps."""
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps.long()].double()
    return [*((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist(), 0.0]


@pytest.mark.parametrize("steps", [61, 103])
def test_trailing_spacing_has_the_requested_steps_where_diffusers_has_one_more(steps: int) -> None:
    """Numpy's arange has an element too many for these counts: diffusers ends at timestep -1."""
    config = SDXL | {"timestep_spacing": "trailing"}
    assert diffusers_scheduler(Sampler.EULER, config, steps).timesteps[-1] == -1
    ours = make_schedule(NoiseConfig.from_scheduler_config(config), Sampler.EULER, steps, None, 1.0)
    assert len(ours) == steps
    assert min(ours.timesteps) >= 0


@pytest.mark.parametrize(
    ("steps", "strength", "start"),
    [(20, None, 0), (20, 0.6, 8), (20, 1.0, 0), (4, 0.2, 3), (1, 0.1, 0), (30, 0.2, 24)],
)
def test_strength_decides_the_first_step(steps: int, strength: float | None, start: int) -> None:
    schedule = make_schedule(NOISE, Sampler.EULER, steps, strength, 1.0)
    assert schedule.start_index == start
    assert len(schedule) - schedule.start_index == steps - start >= 1


def test_the_handoff_is_a_cut_in_timesteps_not_a_share_of_steps() -> None:
    cut = {s: make_schedule(NOISE, s, 25, None, 0.8).handoff_index for s in Sampler}
    assert cut[Sampler.EULER] == 20
    assert cut[Sampler.DPMPP_2M_KARRAS] == 16


@pytest.mark.parametrize(
    ("sampler", "steps", "handoff", "index"),
    [
        (Sampler.EULER, 1, 0.8, 0),
        (Sampler.DPMPP_2M, 4, 0.8, 4),
        (Sampler.EULER, 10, 0.0, 0),
        (Sampler.EULER, 10, 1.0, 10),
    ],
)
def test_a_stage_may_have_no_steps(
    sampler: Sampler, steps: int, handoff: float, index: int
) -> None:
    assert make_schedule(NOISE, sampler, steps, None, handoff).handoff_index == index


def test_the_handoff_never_splits_a_pair_of_heun() -> None:
    """Check the 31 evaluations of 16 steps.

    Diffusers hands over after the first evaluation of a pair, where the other stage can't begin.
    """
    schedule = make_schedule(NOISE, Sampler.HEUN, 16, 0.7, 0.6)
    assert len(schedule) == 31
    assert schedule.start_index == 10
    assert schedule.timesteps[16] >= 400 > schedule.timesteps[17] == schedule.timesteps[18]
    assert schedule.handoff_index == 18
    assert make_schedule(NOISE, Sampler.HEUN, 16, None, 1.0).handoff_index == 31


def test_an_image_that_starts_late_is_handed_over_where_it_starts() -> None:
    schedule = make_schedule(NOISE, Sampler.EULER, 30, 0.1, 0.8)
    assert schedule.handoff_index == schedule.start_index == 27


def test_karras_timesteps_may_repeat_so_a_step_is_an_index() -> None:
    schedule = make_schedule(NOISE, Sampler.DPMPP_2M_KARRAS, 50, None, 1.0)
    assert len(set(schedule.timesteps)) < len(schedule)
    assert len(set(schedule.sigmas)) == len(schedule.sigmas)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "sample"),
        ("timestep_spacing", "random"),
        ("num_train_timesteps", "many"),
    ],
)
def test_an_unsupported_setting_is_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"has {key}=.* in scheduler_config.json"):
        NoiseConfig.from_scheduler_config(SDXL | {key: value})


@pytest.mark.parametrize(
    "solver", [Solver.EULER, Solver.EULER_A, Solver.DPMPP_2M, Solver.DPMPP_2M_SDE, Solver.UNIPC]
)
def test_an_empty_config_has_diffusers_defaults(solver: Solver) -> None:
    theirs = stock_scheduler(Sampler(solver), {}).config
    ours = asdict(NoiseConfig.from_scheduler_config({}))
    assert ours.pop("edm") is None
    for key in ours.keys() - theirs.keys():  # of other classes
        assert not ours.pop(key)
    assert ours == {key: theirs[key] for key in ours}


EDM_CONFIGS: dict[str, dict[str, Any]] = {
    "playground": {"prediction_type": "epsilon"},
    "cosxl": {
        "prediction_type": "v_prediction",
        "sigma_schedule": "exponential",
        "sigma_max": 120.0,
        "sigma_data": 1.0,
    },
    "another rho": {"rho": 5.0, "sigma_min": 0.01, "sigma_max": 40.0},
}
EDM_SPACINGS = (SigmaSpacing.CHECKPOINT, SigmaSpacing.KARRAS, SigmaSpacing.EXPONENTIAL)


@pytest.mark.parametrize("config", EDM_CONFIGS)
@pytest.mark.parametrize("spacing", EDM_SPACINGS)
@pytest.mark.parametrize("solver", [Solver.EULER, Solver.DPMPP_2M, Solver.DPMPP_2M_SDE])
def test_an_edm_schedule_equals_that_of_diffusers(
    solver: Solver, spacing: SigmaSpacing, config: str
) -> None:
    options = EDM_CONFIGS[config]
    noise = read_scheduler(options, "EDMEulerScheduler").noise
    (sampler,) = [s for s in Sampler if (s.solver, s.spacing) == (solver, spacing)]
    for steps in (2, 5, 18, 50):
        theirs = stock_edm_scheduler(sampler, options)
        theirs.set_timesteps(steps)
        ours = make_schedule(noise, sampler, steps, None, 1.0)
        assert list(ours.sigmas) == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)
        assert list(ours.timesteps) == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)
        assert ours.init_noise_sigma == pytest.approx(theirs.init_noise_sigma)


EDM = NoiseConfig(edm=EdmNoise())


def test_edm_offers_the_samplers_that_step_in_sigmas() -> None:
    offered = {sampler.solver for sampler in EDM.samplers}
    assert offered == set(Solver) - {Solver.DDIM, Solver.LCM}
    assert {sampler.spacing for sampler in EDM.samplers} == set(EDM_SPACINGS)
    assert NOISE.samplers == tuple(Sampler)


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.LCM, Sampler.EULER_TRAILING])
def test_a_sampler_that_needs_timesteps_is_refused_by_name(sampler: Sampler) -> None:
    with pytest.raises(InvalidRequest, match=f"sampler is {sampler}, .* choose one of euler, "):
        make_schedule(EDM, sampler, 4, None, 1.0)


@pytest.mark.parametrize(("steps", "handoff", "index"), [(10, 0.8, 8), (10, 0.0, 0), (10, 1, 10)])
def test_an_edm_checkpoint_hands_over_after_a_share_of_the_steps(
    steps: int, handoff: float, index: int
) -> None:
    assert make_schedule(EDM, Sampler.EULER, steps, None, handoff).handoff_index == index


def test_a_karras_range_of_the_checkpoint_is_that_of_diffusers() -> None:
    config = SDXL | {"sigma_min": 0.1, "sigma_max": 9.0}
    for sampler in (Sampler.EULER_KARRAS, Sampler.EULER_EXPONENTIAL, Sampler.EULER):
        theirs = diffusers_scheduler(sampler, config, 7)
        ours = make_schedule(NoiseConfig.from_scheduler_config(config), sampler, 7, None, 1.0)
        assert list(ours.sigmas) == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)


def test_ddim_may_end_at_the_picture() -> None:
    noise = NoiseConfig.from_scheduler_config(SDXL | {"set_alpha_to_one": True})
    assert make_schedule(noise, Sampler.DDIM, 10, None, 1.0).target_sigmas[-1] == 0
    assert make_schedule(NOISE, Sampler.DDIM, 10, None, 1.0).target_sigmas[-1] > 0


def test_checkpoints_have_the_same_noise_when_their_sigmas_are_equal() -> None:
    other = NoiseConfig.from_scheduler_config(SDXL | {"timestep_spacing": "trailing"})
    assert NOISE.has_same_noise_as(other)
    assert not NOISE.has_same_noise_as(NoiseConfig())
    assert EDM.has_same_noise_as(NoiseConfig(edm=EdmNoise()))
    assert not EDM.has_same_noise_as(NoiseConfig())
    assert not NoiseConfig().has_same_noise_as(EDM)
