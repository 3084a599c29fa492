import pytest

from serve_app.core.diffusion.model_defaults import ModelDefaults, defaults_of
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import EdmNoise, NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler, read_scheduler

TURBO = ModelDefaults(4, 1.0, Sampler.EULER_A_TRAILING)
LIGHTNING = ModelDefaults(4, 1.0, Sampler.EULER_TRAILING)
HYPER = ModelDefaults(4, 1.0, Sampler.DDIM_TRAILING)
LCM = ModelDefaults(4, 1.0, Sampler.LCM)
PCM = TCD = ModelDefaults(4, 1.0, Sampler.DDIM_TRAILING)
LEADING = NoiseConfig(timestep_spacing="leading")
TRAILING = NoiseConfig(timestep_spacing="trailing")
OWN = CheckpointScheduler(LEADING, Sampler.EULER)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("stable-diffusion-xl-base-1.0", ModelDefaults()),
        ("juggernautXL_v9", ModelDefaults()),
        ("a_welcome_mat", ModelDefaults()),
        ("calcmXL", ModelDefaults()),
        ("hyperrealisticXL", ModelDefaults()),
        ("sdxl-turbo", TURBO),
        ("DreamShaperXL_Turbo_v2", TURBO),
        ("sdxl_lightning_8step", ModelDefaults(8, 1.0, Sampler.EULER_TRAILING)),
        ("sdxl_lightning_2step_unet", ModelDefaults(2, 1.0, Sampler.EULER_TRAILING)),
        ("juggernautXL_lightningDPM_30steps", LIGHTNING),
        ("Hyper-SDXL-8steps", ModelDefaults(8, 1.0, Sampler.DDIM_TRAILING)),
        ("hyper_sdxl_1step", HYPER),
        ("lcm-sdxl", LCM),
        ("fox_LCM_6 steps", ModelDefaults(6, 1.0, Sampler.LCM)),
        ("DMD2", LCM),
        ("bigASP_dmd2_8step", ModelDefaults(8, 1.0, Sampler.LCM)),
        ("dmd_2 4step", LCM),
        ("admd2", ModelDefaults()),
        ("pcm_sdxl_smallcfg_2step", ModelDefaults(2, 1.0, Sampler.DDIM_TRAILING)),
        ("PCM_Weights", PCM),
        ("spcmXL", ModelDefaults()),
        ("TCD-SDXL", TCD),
        ("notcdXL", ModelDefaults()),
    ],
)
def test_a_distilled_checkpoint_is_known_by_its_name(name: str, defaults: ModelDefaults) -> None:
    assert defaults_of([name], OWN) == defaults


def test_every_name_counts() -> None:
    assert defaults_of(["model", "A Fox, SDXL Lightning"], OWN) == LIGHTNING


def test_the_checkpoints_own_sampler_is_the_default() -> None:
    own = CheckpointScheduler(LEADING, Sampler.DPMPP_2M_KARRAS)
    assert defaults_of(["model"], own) == ModelDefaults(sampler=Sampler.DPMPP_2M_KARRAS)


@pytest.mark.parametrize(("name", "defaults"), [("LCMScheduler", LCM), ("TCDScheduler", TCD)])
def test_a_distilled_checkpoint_is_known_by_its_scheduler(
    name: str, defaults: ModelDefaults
) -> None:
    assert defaults_of(["model"], read_scheduler({}, name)) == defaults


@pytest.mark.parametrize(
    "own",
    [
        CheckpointScheduler(TRAILING, Sampler.EULER_A),
        CheckpointScheduler(LEADING, Sampler.LCM),
        read_scheduler({}, "TCDScheduler"),
        CheckpointScheduler(NoiseConfig(edm=EdmNoise()), Sampler.DPMPP_2M),
    ],
    ids=lambda own: str(own.sampler),
)
def test_a_distilled_checkpoint_keeps_a_sampler_of_its_own_that_suits_few_steps(
    own: CheckpointScheduler,
) -> None:
    assert defaults_of(["sdxl-turbo"], own) == ModelDefaults(4, 1.0, own.sampler)
