"""The cloud's model as requests know it, and how it is reached, from the settings.

It is the default where no local model is configured, and else beside the local ones, for requests
that name it.
"""

from collections.abc import Iterable
from dataclasses import replace

from serve_app.cloud.gemini_options import MODEL_NAME, PROVIDER, GeminiOptions
from serve_app.config.settings import Settings
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.errors import SettingsError
from serve_app.core.service.info import CloudModel, License, ModelInfo, ServiceInfo

_SIDE = 1024  # pixels; input images are brought to a size near its square
_TERMS = License(
    MODEL_NAME,
    "Gemini API Additional Terms of Service",
    "https://ai.google.dev/gemini-api/terms",
    (
        "prompts and images are sent to Google, which may keep them for a time",
        "Google's Prohibited Use Policy applies to what is asked for",
        "every image carries Google's watermark SynthID",
    ),
    "",
)


def gemini_options(settings: Settings) -> GeminiOptions | None:
    """Return how the Gemini API is reached; None without a key."""
    if settings.gemini_api_key is None:
        return None
    return GeminiOptions(
        settings.gemini_api_key,
        settings.gemini_model,
        settings.gemini_base_url,
        settings.gemini_image_size,
        settings.gemini_max_calls,
        timeout_s=settings.gemini_timeout_seconds,
        read_timeout_s=settings.gemini_timeout_seconds,
    )


def with_cloud(info: ServiceInfo, settings: Settings) -> ServiceInfo:
    """Return what the service is with its cloud's model, if it has one."""
    if settings.gemini_api_key is None:
        return info
    model = ModelInfo(
        MODEL_NAME,
        _SIDE,
        NoiseConfig.from_scheduler_config({}),  # which nothing asks for
        can_be_refined=False,
        aliases=(settings.gemini_model,),
        cloud=CloudModel(settings.gemini_model, PROVIDER),
    )
    is_default = settings.is_cloud_default
    models = (model, *info.models) if is_default else (*info.models, model)
    return replace(info, models=models, licenses=(*info.licenses, _TERMS))


def check_cloud_name(settings: Settings, names: Iterable[str]) -> None:
    """Check that no local model has the cloud's name. Raises `SettingsError`."""
    if settings.gemini_api_key is not None and MODEL_NAME in names:
        raise SettingsError(
            "is the name of a local model, and with GEMINI_API_KEY that of the cloud's",
            subject=MODEL_NAME,
            remedy="Rename its folder or its entry in MODELS_FILE, or leave GEMINI_API_KEY empty",
        )
