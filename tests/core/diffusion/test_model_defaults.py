import pytest

from serve_app.core.diffusion.model_defaults import ModelDefaults, defaults_of
from serve_app.core.diffusion.samplers import Sampler

TURBO = ModelDefaults(4, 1.0, Sampler.EULER_A_TRAILING)
LIGHTNING = ModelDefaults(4, 1.0, Sampler.EULER_TRAILING)
HYPER = ModelDefaults(4, 1.0, Sampler.DDIM_TRAILING)
LCM = ModelDefaults(4, 1.0, Sampler.LCM)


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
    ],
)
def test_a_distilled_checkpoint_is_known_by_its_name(name: str, defaults: ModelDefaults) -> None:
    assert defaults_of([name]) == defaults


def test_every_name_and_the_scheduler_count() -> None:
    assert defaults_of(["model", "A Fox, SDXL Lightning"]) == LIGHTNING
    assert defaults_of(["model"], "LCMScheduler") == LCM
    assert defaults_of(["model"], "EulerDiscreteScheduler") == ModelDefaults()
