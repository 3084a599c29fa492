"""The types of the settings of the cloud mode, and which of them the environment may set.

Other programs read GEMINI_API_KEY and its like from a shell, so a bare name of the environment does
not count: it would turn a free demo into calls that somebody pays for. With the prefix AURA_ it is
meant for this service, and so it is in an environment that was made for it, as a container's.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from serve_app.config.web_addresses import secure_url

SHARED_PREFIX = "GEMINI_"  # of names that other programs read too
OWN_ENVIRONMENT = "AURA_OWN_ENVIRONMENT"  # 1: nobody else reads this environment
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def counts_in(environ: Mapping[str, str], name: str) -> bool:
    """Return whether a variable of an environment may set something here.

    An empty one may: it switches off what a file says.
    """
    is_shared = name.upper().startswith(SHARED_PREFIX) and environ.get(OWN_ENVIRONMENT) != "1"
    return not (is_shared and environ[name])


def has_unused_key(environ: Mapping[str, str]) -> bool:
    """Return whether the environment has a key that does not count."""
    name = f"{SHARED_PREFIX}API_KEY"
    return name in environ and not counts_in(environ, name)


def _key(key: SecretStr) -> SecretStr:
    if not _KEY.fullmatch(key.get_secret_value()):
        raise ValueError("must be a key of visible characters, without spaces")
    return key


def _model(name: str) -> str:
    if not _MODEL.fullmatch(name):
        raise ValueError("must be the name of a model: letters, digits, dots, - and _")
    return name


def _base_url(url: str) -> str:
    parts = secure_url(url)
    if parts is None or parts.query or parts.fragment:
        raise ValueError("must be an https address, or an http one of this machine, without a user")
    return url.rstrip("/")


GeminiKey = Annotated[
    Annotated[SecretStr, AfterValidator(_key)] | None,
    Field(
        repr=False,
        description="Key of Google's Gemini API. With it and without MODEL_CHECKPOINT_DIR and "
        "MODELS_FILE, Gemini makes the images, for money; beside these, of requests for the model "
        "`gemini` alone. In the environment it must be AURA_GEMINI_API_KEY. Empty: no cloud",
    ),
]
GeminiModel = Annotated[
    str,
    AfterValidator(_model),
    Field(description="Model of the Gemini API, one that `generateContent` makes images with"),
]
GeminiBaseUrl = Annotated[
    str,
    AfterValidator(_base_url),
    Field(description="Address of the Gemini API, or of a gateway to it: https, or this machine"),
]
GeminiImageSize = Annotated[
    Literal["1K", "2K", "4K"], Field(description="Size of Gemini's images; larger ones cost more")
]
GeminiMaxCalls = Annotated[
    int, Field(ge=1, le=64, description="Calls of the Gemini API at once, of each ingress replica")
]
GeminiTimeout = Annotated[
    float, Field(ge=1, le=600, description="Seconds that one call of the Gemini API may take")
]
