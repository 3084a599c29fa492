import pytest

from serve_app.core.diffusion.model_defaults import Defaults, defaults_of
from serve_app.core.diffusion.spec import Sampler

TURBO = Defaults(4, 1.0, Sampler.EULER_A_TRAILING)
LIGHTNING = Defaults(4, 1.0, Sampler.EULER_TRAILING)
HYPER = Defaults(4, 1.0, Sampler.DDIM_TRAILING)
LCM = Defaults(4, 1.0, Sampler.LCM)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("stable-diffusion-xl-base-1.0", Defaults()),
        ("juggernautXL_v9", Defaults()),
        ("a_welcome_mat", Defaults()),
        ("calcmXL", Defaults()),
        ("hyperrealisticXL", Defaults()),
        ("sdxl-turbo", TURBO),
        ("DreamShaperXL_Turbo_v2", TURBO),
        ("sdxl_lightning_8step", Defaults(8, 1.0, Sampler.EULER_TRAILING)),
        ("sdxl_lightning_2step_unet", Defaults(2, 1.0, Sampler.EULER_TRAILING)),
        ("juggernautXL_lightningDPM_30steps", LIGHTNING),
        ("Hyper-SDXL-8steps", Defaults(8, 1.0, Sampler.DDIM_TRAILING)),
        ("hyper_sdxl_1step", HYPER),
        ("lcm-sdxl", LCM),
        ("fox_LCM_6 steps", Defaults(6, 1.0, Sampler.LCM)),
    ],
)
def test_a_distilled_checkpoint_is_known_by_its_name(name: str, defaults: Defaults) -> None:
    assert defaults_of([name]) == defaults


def test_any_of_its_names_or_its_scheduler_will_do() -> None:
    assert defaults_of(["model", "A Fox, SDXL Lightning"]) == LIGHTNING
    assert defaults_of(["model"], "LCMScheduler") == LCM
    assert defaults_of(["model"], "EulerDiscreteScheduler") == Defaults()
