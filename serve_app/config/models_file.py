"""MODELS_FILE: further checkpoints and extensions by name, as the operator wrote them down.

Each kind of extension has a section, such as `loras`. No torch: `catalog` inspects the files that
the paths name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
)

from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.diffusion.extensions import WEIGHT_RANGE, ExtensionKey
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import GUIDANCE_RANGE, SIGMA_RANGE, STEPS_RANGE, StepCache
from serve_app.core.errors import SettingsError
from serve_app.core.validation_message import validation_message
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS, ExtensionKindEntries

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Sigma = Annotated[float, Field(ge=SIGMA_RANGE[0], le=SIGMA_RANGE[1])]
_MODELS = "models"  # the section of the checkpoints


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("must have the lower noise level first")
    return interval


def _off(value: object) -> object:
    """Return what YAML means by `off`, which it reads as false."""
    return StepCache.OFF if value is False else value


Interval = Annotated[tuple[_Sigma, _Sigma], AfterValidator(_ascending)]


class ModelEntry(BaseModel):
    """One model. The checkpoint itself decides what the entry leaves out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # a diffusers folder, or a .safetensors file
    config: Path | None = None  # folder with the configs and tokenizers that a single file lacks
    refiner: bool | None = None  # whether the configured refiner may continue its images
    steps: int | None = Field(None, ge=STEPS_RANGE[0], le=STEPS_RANGE[1])
    guidance: float | None = Field(None, ge=GUIDANCE_RANGE[0], le=GUIDANCE_RANGE[1])
    guidance_interval: Interval | None = None
    cache: Annotated[StepCache, BeforeValidator(_off)] = StepCache.OFF
    sampler: Sampler | None = None
    license: str | None = Field(None, min_length=1, max_length=200)


class ExtensionEntry(BaseModel):
    """One extension, of any kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path  # for a LoRA a .safetensors file
    weight: float = Field(1.0, ge=WEIGHT_RANGE[0], le=WEIGHT_RANGE[1])  # if the request has none
    license: str | None = Field(None, min_length=1, max_length=200)


@dataclass(frozen=True, slots=True)
class ModelsFile:
    """The whole file; kinds of extension come in the order of the registry."""

    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    extensions: Mapping[ExtensionKey, ExtensionEntry] = field(default_factory=dict)


def read_models_file(
    file: Path | None, kinds: ExtensionKindEntries = EXTENSION_KINDS
) -> ModelsFile:
    """Return the entries of a file, in its order; relative paths start at the file's folder.

    Without a file there are none. Raises `SettingsError` that names the file and the key.
    """
    if file is None:
        return ModelsFile()
    try:
        read = _document_type(kinds).model_validate(
            yaml.load(file.read_text(encoding="utf-8"), UniqueKeyLoader)
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        reason = " ".join(str(text).split())
        raise SettingsError(
            f"can't be read: {reason}", "MODELS_FILE", subject=f"MODELS_FILE={file}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "models"
        raise SettingsError(
            validation_message(first), "MODELS_FILE", subject=f"MODELS_FILE={file}: {key}"
        ) from None
    models: dict[str, ModelEntry] = getattr(read, _MODELS)
    extensions: dict[ExtensionKey, ExtensionEntry] = {
        ExtensionKey(kind, name): entry
        for kind, listed in kinds.items()
        for name, entry in getattr(read, listed.section).items()
    }
    return ModelsFile(
        {name: _with_absolute_paths(entry, file.parent) for name, entry in models.items()},
        {
            key: entry.model_copy(update={"path": file.parent / entry.path.expanduser()})
            for key, entry in extensions.items()
        },
    )


def _document_type(kinds: ExtensionKindEntries) -> type[BaseModel]:
    """Return the schema of the file: a section for the models, and one for each kind."""
    sections: dict[str, Any] = {_MODELS: (dict[Name, ModelEntry], {})}
    for kind in kinds.values():
        sections[kind.section] = (dict[Name, ExtensionEntry], {})
    return create_model("ModelsFile", __config__=ConfigDict(extra="forbid"), **sections)


def _with_absolute_paths(entry: ModelEntry, folder: Path) -> ModelEntry:
    """Return the entry with absolute paths, because replicas run in other folders."""
    config = entry.config and folder / entry.config.expanduser()
    return entry.model_copy(update={"path": folder / entry.path.expanduser(), "config": config})
