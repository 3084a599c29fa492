"""MODELS_FILE: further checkpoints, and LoRAs, by name, as the operator wrote them down.

Knows no checkpoints and no torch: what a path holds is looked at in `choices`.
"""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import GUIDANCE_RANGE, LORA_WEIGHT_RANGE, STEPS_RANGE
from serve_app.core.errors import SettingsError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ModelEntry(BaseModel):
    """One model. What is left out is as the checkpoint itself says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # a diffusers folder, or a .safetensors file
    config: Path | None = None  # the folder of what a single file lacks
    refiner: bool | None = None  # whether the configured refiner may continue its pictures
    steps: int | None = Field(None, ge=STEPS_RANGE[0], le=STEPS_RANGE[1])
    guidance: float | None = Field(None, ge=GUIDANCE_RANGE[0], le=GUIDANCE_RANGE[1])
    sampler: Sampler | None = None
    license: str | None = Field(None, min_length=1, max_length=200)


class LoraEntry(BaseModel):
    """One LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # a .safetensors file
    weight: float = Field(
        1.0, ge=LORA_WEIGHT_RANGE[0], le=LORA_WEIGHT_RANGE[1]
    )  # when a request says none
    license: str | None = Field(None, min_length=1, max_length=200)


class ModelsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[Name, ModelEntry] = {}
    loras: dict[Name, LoraEntry] = {}


def read_models_file(file: Path | None) -> ModelsFile:
    """The entries by name, in the file's order, paths taken from where the file lies; none without
    a file. Raises `SettingsError` with one line that names the file and the key.
    """
    if file is None:
        return ModelsFile()
    try:
        read = ModelsFile.model_validate(
            yaml.load(file.read_text(encoding="utf-8"), UniqueKeyLoader)
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise SettingsError(f"MODELS_FILE={file} can't be read: {told}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise SettingsError(f"MODELS_FILE={file}: {where or 'models'}: {first['msg']}") from None
    return ModelsFile(
        models={name: _placed(entry, file.parent) for name, entry in read.models.items()},
        loras={
            name: entry.model_copy(update={"path": file.parent / entry.path.expanduser()})
            for name, entry in read.loras.items()
        },
    )


def _placed(entry: ModelEntry, folder: Path) -> ModelEntry:
    """The entry with absolute paths: replicas run elsewhere."""
    config = entry.config and folder / entry.config.expanduser()
    return entry.model_copy(update={"path": folder / entry.path.expanduser(), "config": config})
