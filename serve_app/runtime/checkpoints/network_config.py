"""The config.json of a network, validated: what this service understands, and nothing else.

Keys that diffusers and transformers don't know have no effect there and none here. No torch.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.core.errors import CheckpointError
from serve_app.core.validation_message import validation_message

_MAX_SHOWN = 60  # characters of an illegal value in a message
_MEANINGS = {  # of an option that makes another kind of model, by its key
    "in_channels": "it is an inpainting or editing model, or no SDXL",
    "time_cond_proj_dim": "it takes its guidance scale as an embedding, which is not supported",
    "addition_embed_type": "it is no SDXL",
    "latent_channels": "it is not the VAE of an SDXL",
}

# Bounds keep a malformed config from describing a network that fills the memory.
Channels = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=128)]


class NetworkConfig(BaseModel):
    """What the configs of all networks have in common."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


_Config = TypeVar("_Config", bound=NetworkConfig)


def read_network_config(kind: type[_Config], content: Mapping[str, Any], label: str) -> _Config:
    """Return a validated config.

    Raises `CheckpointError`, which names the file by its `label`, the key, the value, and what it
    must be.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise CheckpointError(f"has a {label} {_problem(error.errors())}") from None


def _problem(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return a clause for the first key that is wrong.

    A value that none of several types accepts has an error for each of them. That of an entry of a
    list says more than that the list is no number.
    """
    if not errors[0]["loc"]:  # what several keys together must be
        return f"whose {validation_message(errors[0])}"
    key = errors[0]["loc"][0]
    same_key = [error for error in errors if error["loc"][0] == key]
    of_entry = [error for error in same_key if any(isinstance(part, int) for part in error["loc"])]
    shown = of_entry[-1:] or same_key
    if shown[0]["type"] == "missing":
        return f"without {'.'.join(map(str, shown[0]['loc']))}"
    messages = dict.fromkeys(validation_message(error) for error in shown)
    message = " or ".join(messages).replace(" or must be", " or").replace(" or must", " or")
    parts = [part for part in shown[0]["loc"] if isinstance(part, int) or part.isidentifier()]
    path = ".".join(str(part) for part in parts if part not in ("int", "float"))
    meaning = f": {_MEANINGS[key]}" if key in _MEANINGS else ""
    return f"whose {path} {message}, got {_shown(shown[0]['input'])}{meaning}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
