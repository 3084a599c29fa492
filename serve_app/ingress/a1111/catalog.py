"""What the service has, in the lists of the web UI: checkpoints, samplers, LoRAs, and the rest.

What it does not have is an empty list, so that clients show no choice.
"""

from typing import Any

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.samplers import TABLE, SigmaSpacing
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.a1111.names import samplers_of

EMPTY_LISTS = (
    "latent-upscale-modes",
    "sd-vae",
    "sd-modules",
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "script-info",
)


def checkpoints(info: ServiceInfo) -> list[dict[str, Any]]:
    """Return the checkpoints, the default one first. A title is a name; paths are private."""
    return [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": None,
            "sha256": None,
            "filename": model.name,
            "config": None,
        }
        for model in info.models
    ]


def samplers() -> list[dict[str, Any]]:
    """Return the samplers, with every name that a request may give them."""
    return [
        {
            "name": row.a1111_name,
            "aliases": samplers_of(row),
            "options": {"second_order": "true"} if row.nfe > 1 else {},
        }
        for row in TABLE
    ]


def schedulers() -> list[dict[str, Any]]:
    """Return the schedule types."""
    return [
        {
            "name": spacing.a1111_name.lower(),
            "label": spacing.a1111_name,
            "aliases": [spacing.value],
            "default_rho": 7.0 if spacing is SigmaSpacing.KARRAS else -1,
            "need_inner_model": False,
        }
        for spacing in SigmaSpacing
    ]


def upscalers() -> list[dict[str, Any]]:
    """Return the one upscaler that every client expects to be there: none."""
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}]


def loras(info: ServiceInfo) -> list[dict[str, Any]]:
    """Return the LoRAs, as prompts name them."""
    return [
        {
            "name": lora.name,
            "alias": lora.name,
            "path": lora.name,
            "metadata": {"models": list(lora.models), "default_weight": lora.default_weight},
        }
        for lora in info.extensions_of(LORA)
    ]


def options(model: ModelInfo) -> dict[str, Any]:
    """Return the web UI's options that clients read, for a caller who has chosen a model."""
    return {
        "sd_model_checkpoint": model.name,
        "sd_checkpoint_hash": None,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "sdxl_clip_l_skip": False,
        "samples_format": "png",
        "enable_pnginfo": True,
        "eta_noise_seed_delta": 0,
        "live_previews_enable": True,
        "show_progress_type": "Approx cheap",
    }
