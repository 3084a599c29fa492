"""What tests of the cloud's maker call it through."""

from typing import Any, Protocol

import httpx
from pydantic import SecretStr

from serve_app.config.cloud_model import with_cloud
from serve_app.config.settings import Settings
from serve_app.core.service.info import ServiceInfo
from tests.support.fake_conductor import INFO
from tests.support.gemini_stand_in import KEY, MODEL


class Caller(Protocol):
    """Makes clients of an API whose maker is local and the cloud's."""

    def __call__(self, *, is_default: bool = True, **options: Any) -> httpx.AsyncClient:
        """Return a client; `options` are those of `GeminiOptions`."""


def info_of(*, is_default: bool, remote: str = MODEL) -> ServiceInfo:
    """Return what a service with a key is, whose only other model is the default or not.

    `remote` is its GEMINI_MODEL.
    """
    model = None if is_default else "/models/sdxl"
    settings = Settings.model_validate(
        {
            "gemini_api_key": SecretStr(KEY),
            "gemini_model": remote,
            "model_checkpoint_dir": model,
        }
    )
    return with_cloud(INFO, settings)
