"""MODELS_FILE: further checkpoints and LoRAs by name, as the operator wrote them down.

No torch: `catalog` inspects the files that the paths name.
"""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.diffusion.extensions import WEIGHT_RANGE
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import GUIDANCE_RANGE, STEPS_RANGE
from serve_app.core.errors import SettingsError
from serve_app.core.validation_message import validation_message

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ModelEntry(BaseModel):
    """One model. The checkpoint itself decides what the entry leaves out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # a diffusers folder, or a .safetensors file
    config: Path | None = None  # folder with the configs and tokenizers that a single file lacks
    refiner: bool | None = None  # whether the configured refiner may continue its images
    steps: int | None = Field(None, ge=STEPS_RANGE[0], le=STEPS_RANGE[1])
    guidance: float | None = Field(None, ge=GUIDANCE_RANGE[0], le=GUIDANCE_RANGE[1])
    sampler: Sampler | None = None
    license: str | None = Field(None, min_length=1, max_length=200)


class LoraEntry(BaseModel):
    """One LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # a .safetensors file
    weight: float = Field(1.0, ge=WEIGHT_RANGE[0], le=WEIGHT_RANGE[1])  # if the request has none
    license: str | None = Field(None, min_length=1, max_length=200)


class ModelsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[Name, ModelEntry] = {}
    loras: dict[Name, LoraEntry] = {}


def read_models_file(file: Path | None) -> ModelsFile:
    """Return the entries of a file, in its order; relative paths start at the file's folder.

    Without a file there are none. Raises `SettingsError` that names the file and the key.
    """
    if file is None:
        return ModelsFile()
    try:
        read = ModelsFile.model_validate(
            yaml.load(file.read_text(encoding="utf-8"), UniqueKeyLoader)
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"MODELS_FILE={file} can't be read: {reason}", "MODELS_FILE") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "models"
        raise SettingsError(
            f"MODELS_FILE={file}: {key}: {validation_message(first)}", "MODELS_FILE"
        ) from None
    return ModelsFile(
        models={
            name: _with_absolute_paths(entry, file.parent) for name, entry in read.models.items()
        },
        loras={
            name: entry.model_copy(update={"path": file.parent / entry.path.expanduser()})
            for name, entry in read.loras.items()
        },
    )


def _with_absolute_paths(entry: ModelEntry, folder: Path) -> ModelEntry:
    """Return the entry with absolute paths, because replicas run in other folders."""
    config = entry.config and folder / entry.config.expanduser()
    return entry.model_copy(update={"path": folder / entry.path.expanduser(), "config": config})
