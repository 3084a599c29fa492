"""Fields of the web UI's API that are not served here.

Refused by name is what would change the image; what changes none, or asks for nothing, is ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from serve_app.core.diffusion.samplers import Solver
from serve_app.core.errors import InvalidRequest
from serve_app.ingress.a1111.schemas import ImagesRequest

_Neutral = Callable[[Any], bool]


def _is_off(value: Any) -> bool:
    return value in (None, False, 0, "", "None", "none") or value in ([], {})


def _is_one(value: Any) -> bool:
    return value in (None, 1)


def _is_automatic(value: Any) -> bool:
    return value in (None, "", "Automatic", "None")


def _is_switched_off(value: Any) -> bool:
    """Return whether scripts that clients send along always are all switched off."""
    if not isinstance(value, dict):
        return _is_off(value)
    return all(map(_has_no_effect, value.values()))


def _has_no_effect(script: Any) -> bool:
    """Return whether a script is off: each unit by `enabled`, or else by its first argument."""
    arguments = script.get("args", []) if isinstance(script, dict) else script
    arguments = [arguments] if isinstance(arguments, dict) else arguments
    if not isinstance(arguments, list):
        return _is_off(arguments)
    units = [argument for argument in arguments if isinstance(argument, dict)]
    if units:
        return all(_is_off(unit.get("enabled", bool(unit))) for unit in units)
    return not arguments or _is_off(arguments[0])


_FIELDS: Mapping[str, tuple[_Neutral, str]] = {
    "enable_hr": (_is_off, "high-resolution passes are not offered; ask for the size itself"),
    "restore_faces": (_is_off, "faces are not restored"),
    "tiling": (_is_off, "tiling is not offered"),
    "subseed_strength": (_is_off, "variation seeds are not offered"),
    "mask": (_is_off, "inpainting is not offered"),
    "script_name": (_is_off, "scripts are not offered"),
    "alwayson_scripts": (_is_switched_off, "scripts such as ControlNet are not offered"),
    "controlnet_units": (_is_off, "ControlNet is not offered"),
    "s_churn": (_is_off, "churn is not offered"),
    "s_noise": (_is_one, "the noise can't be scaled"),
    "s_min_uncond": (_is_off, "name guidanceInterval on /generate instead"),
    "disable_extra_networks": (_is_off, "leave LoRAs out of the prompt instead"),
    "initial_noise_multiplier": (_is_one, "the noise can't be scaled"),
    "infotext": (_is_off, "send its settings as fields; png-info reads them"),
}
_SETTINGS: Mapping[str, tuple[_Neutral, str]] = {  # of override_settings, and of options
    "sd_vae": (_is_automatic, "each checkpoint has its own VAE"),
    "eta_noise_seed_delta": (_is_off, "the noise depends on the seed alone"),
    "sdxl_clip_l_skip": (_is_off, "the first text encoder skips no layers"),
    "forge_additional_modules": (_is_off, "each checkpoint has its own VAE and text encoders"),
    "token_merging_ratio": (_is_off, "tokens are not merged"),
    "token_merging_ratio_img2img": (_is_off, "tokens are not merged"),
    "tiling": (_is_off, "tiling is not offered"),
    "s_churn": (_is_off, "churn is not offered"),
    "s_noise": (_is_one, "the noise can't be scaled"),
    "s_min_uncond": (_is_off, "name guidanceInterval on /generate instead"),
    "eta_ancestral": (_is_one, "ancestral samplers have an eta of 1"),
    "eta_ddim": (_is_off, "DDIM has an eta of 0"),
    "img2img_extra_noise": (_is_off, "the noise can't be scaled"),
    "img2img_color_correction": (_is_off, "colours are not corrected"),
    "sd_hypernetwork": (_is_off, "there are no hypernetworks"),
    "sd_lora": (_is_off, "name LoRAs in the prompt"),
    "initial_noise_multiplier": (_is_one, "the noise can't be scaled"),
}
_HEED_ETA = (Solver.EULER_A, Solver.DPMPP_SDE, Solver.DPMPP_2M_SDE)  # whose noise it scales
_RESIZED_SEED = ("seed_resize_from_h", "seed_resize_from_w")


def check_served(body: ImagesRequest) -> None:
    """Raise `InvalidRequest` for the first field that would change the image and can't."""
    extra = body.model_extra or {}
    for name, (is_neutral, reason) in _FIELDS.items():
        if not is_neutral(extra.get(name)):
            raise InvalidRequest(name, f"can't be used: {reason}")
    check_options(body.override_settings or {}, "override_settings.")
    if all(_is_size(extra.get(name)) for name in _RESIZED_SEED):
        raise InvalidRequest(_RESIZED_SEED[0], "can't be used: noise has the size of its image")


def check_options(options: Mapping[str, Any], parent: str = "") -> None:
    """Raise `InvalidRequest` for the first option that would change images and can't."""
    for name, (is_neutral, reason) in _SETTINGS.items():
        if not is_neutral(options.get(name)):
            raise InvalidRequest(f"{parent}{name}", f"can't be used: {reason}")


def check_eta(body: ImagesRequest, solver: Solver) -> None:
    """Raise `InvalidRequest` for an eta that a sampler heeds, and that is not its own.

    Clients send the web UI's default of 1 whatever the sampler is, and most heed none.
    """
    eta = (body.model_extra or {}).get("eta")
    if solver in _HEED_ETA and not _is_one(eta):
        raise InvalidRequest("eta", f"must be 1 for {solver}")
    if solver is Solver.DDIM and not _is_off(eta):
        raise InvalidRequest("eta", "must be 0 for DDIM")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0
