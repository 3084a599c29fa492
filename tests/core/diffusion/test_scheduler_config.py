"""A checkpoint's scheduler_config.json: what is understood, what is told and what is refused."""

import inspect
import json
from typing import Any

import diffusers
import pytest
from diffusers.schedulers import KarrasDiffusionSchedulers

from serve_app.core.diffusion.preconditioning import NetworkOutput, Preconditioning
from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing
from serve_app.core.diffusion.schedule import EdmNoise, NoiseConfig
from serve_app.core.diffusion.scheduler_config import read_scheduler
from serve_app.core.errors import CheckpointError

EULER, MULTISTEP = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"
UNCLIPPED = {"clip_sample": False}


@pytest.mark.parametrize(
    ("name", "options", "sampler"),
    [
        (EULER, {}, Sampler.EULER),
        (EULER, {"use_karras_sigmas": True}, Sampler.EULER_KARRAS),
        (EULER, {"use_exponential_sigmas": True}, Sampler.EULER_EXPONENTIAL),
        (EULER, {"timestep_spacing": "trailing"}, Sampler.EULER),
        ("EulerAncestralDiscreteScheduler", {"use_karras_sigmas": True}, Sampler.EULER_A),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, Sampler.HEUN_KARRAS),
        ("DDIMScheduler", UNCLIPPED, Sampler.DDIM),
        ("DDIMParallelScheduler", UNCLIPPED, Sampler.DDIM),
        (MULTISTEP, {}, Sampler.DPMPP_2M),
        (MULTISTEP, {"use_karras_sigmas": True}, Sampler.DPMPP_2M_KARRAS),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}, Sampler.DPMPP_2M_SDE),
        (MULTISTEP, {"euler_at_final": True, "lower_order_final": False}, Sampler.DPMPP_2M),
        (
            "DPMSolverSinglestepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            Sampler.DPMPP_SDE,
        ),
        ("UniPCMultistepScheduler", {}, Sampler.UNIPC),
        ("LCMScheduler", {}, Sampler.LCM),
        ("EDMEulerScheduler", {}, Sampler.EULER),
        ("EDMDPMSolverMultistepScheduler", {}, Sampler.DPMPP_2M),
        (
            "EDMDPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            Sampler.DPMPP_2M_SDE,
        ),
    ],
)
def test_a_class_with_its_options_is_a_sampler(
    name: str, options: dict[str, Any], sampler: Sampler
) -> None:
    scheduler = read_scheduler(options, name)
    assert (scheduler.sampler, scheduler.warnings) == (sampler, ())


@pytest.mark.parametrize(
    ("name", "options", "sampler", "part"),
    [
        ("PNDMScheduler", {}, Sampler.EULER, "PNDMScheduler has no equal here: euler is used"),
        ("DDPMScheduler", {}, Sampler.EULER_A, "DDPMScheduler has no equal"),
        ("TCDScheduler", {}, Sampler.DDIM_TRAILING, "TCDScheduler has no equal"),
        ("DEISMultistepScheduler", {}, Sampler.DPMPP_2M, "DEISMultistepScheduler has no equal"),
        (MULTISTEP, {"solver_order": 3}, Sampler.DPMPP_2M, "solver_order=3 of the checkpoint's"),
        (EULER, {"use_beta_sigmas": True}, Sampler.EULER, "use_beta_sigmas=True"),
        (EULER, {"final_sigmas_type": "sigma_min"}, Sampler.EULER, "final_sigmas_type='sigma_min'"),
        ("DPMSolverSinglestepScheduler", {}, Sampler.DPMPP_SDE, "algorithm_type='dpmsolver++'"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, Sampler.UNIPC, "solver_type='bh1'"),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, Sampler.DPMPP_2M, "solver_order=3"),
    ],
)
def test_what_only_changes_how_steps_are_taken_is_a_warning(
    name: str, options: dict[str, Any], sampler: Sampler, part: str
) -> None:
    scheduler = read_scheduler(options, name)
    assert scheduler.sampler is sampler
    (warning,) = scheduler.warnings
    assert part in warning


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "class FlowMatchEulerDiscreteScheduler in sched"),
        ("", {}, r"class \(none\) in scheduler_config.json"),
        (EULER, {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        (MULTISTEP, {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        (MULTISTEP, {"variance_type": "learned"}, "variance_type='learned'"),
        (MULTISTEP, {"thresholding": True}, rf"thresholding=True in .* \({MULTISTEP}\)"),
        (EULER, {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        (EULER, {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("DDIMScheduler", {}, "clip_sample=True"),
        (EULER, {"beta_strat": 0.1}, f"beta_strat=0.1 in .*, which is no option of {EULER}"),
        ("EDMEulerScheduler", {"sigma_max": "high"}, "has an unreadable scheduler_config.json"),
        ("EDMEulerScheduler", {"sigma_max": 0.001}, "range of noise .* can't be: sigma_min=0.002"),
        ("EDMEulerScheduler", {"sigma_data": 0}, "sigma_data=0.0"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    ],
)
def test_noise_that_is_not_understood_is_refused_by_class_and_key(
    name: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_scheduler(options, name)


def test_a_null_is_an_absent_option() -> None:
    options = dict.fromkeys(("timestep_spacing", "solver_order", "beta_start", "sigma_strange"))
    assert read_scheduler(options, MULTISTEP) == read_scheduler({}, MULTISTEP)


def test_the_files_class_counts_where_the_index_names_none() -> None:
    assert read_scheduler({"_class_name": MULTISTEP}).sampler is Sampler.DPMPP_2M
    both = read_scheduler({"_class_name": MULTISTEP, "_diffusers_version": "0.30"}, EULER)
    assert both.sampler is Sampler.EULER


def test_edm_noise_is_continuous_with_its_own_preconditioning() -> None:
    playground = read_scheduler({"sigma_max": 80.0}, "EDMDPMSolverMultistepScheduler").noise
    assert playground.edm == EdmNoise()
    assert playground.preconditioning == Preconditioning(NetworkOutput.EDM, 0.5)
    cosxl = read_scheduler(
        {
            "prediction_type": "v_prediction",
            "sigma_data": 1.0,
            "sigma_max": 120.0,
            "sigma_schedule": "exponential",
        },
        "EDMEulerScheduler",
    ).noise
    assert cosxl.edm == EdmNoise(0.002, 120.0, 1.0, spacing=SigmaSpacing.EXPONENTIAL)
    assert cosxl.preconditioning == Preconditioning(NetworkOutput.VELOCITY, 1.0)
    assert NoiseConfig().preconditioning == Preconditioning()


@pytest.mark.parametrize("scheduler", list(KarrasDiffusionSchedulers), ids=lambda s: s.name)
def test_every_option_of_every_class_of_diffusers_is_understood(
    scheduler: KarrasDiffusionSchedulers,
) -> None:
    """Check the defaults of the installed version; an option that is new there fails here."""
    parameters = inspect.signature(getattr(diffusers, scheduler.name).__init__).parameters
    defaults = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    read_scheduler(json.loads(json.dumps(defaults | UNCLIPPED)), scheduler.name)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "LCMScheduler"]
)
def test_the_defaults_of_the_other_classes_are_understood(name: str) -> None:
    config = getattr(diffusers, name)().config
    assert read_scheduler(config, name).warnings == ()


def test_the_defaults_of_tcd_are_understood_and_its_last_step_is_to_the_lowest_timestep() -> None:
    scheduler = read_scheduler(diffusers.TCDScheduler().config, "TCDScheduler")
    assert (scheduler.noise.beta_schedule, scheduler.noise.beta_end) == ("scaled_linear", 0.012)
    assert not scheduler.noise.set_alpha_to_one  # which TCD never reads


def test_sdxl_s_published_config_is_understood() -> None:
    """Check keys that other classes left there, as conversions do."""
    published = {
        "_class_name": EULER,
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }
    scheduler = read_scheduler(published)
    assert (scheduler.sampler, scheduler.warnings) == (Sampler.EULER, ())
    assert (scheduler.noise.timestep_spacing, scheduler.noise.steps_offset) == ("leading", 1)
