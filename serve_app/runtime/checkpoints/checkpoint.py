"""A checkpoint, read without loading it: is it whole, and what does it say of itself?

A folder in diffusers' layout, or a single file and a folder with the configs it lacks.
Knows no torch, so that the builder and the command line can ask in milliseconds.
Only safetensors are taken: a pickle can run code, and the file's own header is what counts, not
its name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.model_defaults import SDXL_DEFAULTS, ModelDefaults, defaults_of
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import LATENT_CHANNELS, PIXELS_PER_LATENT, Stage
from serve_app.core.errors import CheckpointError, ConfigsError
from serve_app.runtime.checkpoints.safetensors_header import read_header
from serve_app.runtime.checkpoints.single_file import SUFFIX, SingleFile, read_single_file

_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_HALF = re.compile(r"\.fp16[.-]")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
REPOSITORY = {
    Stage.BASE: "stabilityai/stable-diffusion-xl-base-1.0",
    Stage.REFINER: "stabilityai/stable-diffusion-xl-refiner-1.0",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a stage needs. Equal facts, equal pictures (weights apart)."""

    stage: Stage
    folder: Path  # of everything, or of what `file` lacks
    name: str  # how answers call it
    noise_config: NoiseConfig
    native_size: int  # native side of a picture, pixels
    variant: str | None  # of the weight files: None or "fp16"
    requires_aesthetics_score: (
        bool  # five size ids, the last an aesthetic score, as the refiner was trained
    )
    force_zeros_for_empty_prompt: bool  # an absent negative prompt is zeros, not the encoding of ""
    file: SingleFile | None = None  # where the weights are, if not in the folder
    defaults: ModelDefaults = SDXL_DEFAULTS
    text_width: int | None = None  # of the text that its UNet attends to

    @property
    def path(self) -> Path:
        """What `inspect` was asked for."""
        return self.file.path if self.file else self.folder


def inspect(path: Path, stage: Stage, *, configs: Path | None = None) -> Checkpoint:
    """Return what a complete checkpoint says of itself.

    `path` is a folder or a .safetensors file. A file takes its configs, its tokenizers and the
    networks that it lacks from `configs`, a diffusers folder. Raises `CheckpointError` with the
    path as its subject, and its subclass `ConfigsError` when `configs` is what is missing.
    """
    try:
        if is_single_file(path):
            return _inspect_file(path, stage, configs)
        return _inspect_folder(path, stage)
    except CheckpointError as error:
        raise error.about(str(path)) from None


def is_pair(base: Checkpoint, refiner: Checkpoint) -> bool:
    """Whether the refiner can continue what base began."""
    return (
        base.noise_config.has_same_noise_as(refiner.noise_config)
        and base.native_size == refiner.native_size
    )


def components(index: Mapping[str, Any], stage: Stage) -> frozenset[str]:
    """The parts that a model_index.json names, each a folder; all that the stage needs are there.

    Raises `CheckpointError` for the first one that is not.
    """
    present = {
        name
        for name, made_of in index.items()
        if isinstance(made_of, list) and made_of and made_of[0] is not None
    }
    for name in sorted(_needed(stage) - present):
        raise CheckpointError(f"lacks {name} in model_index.json")
    return frozenset(present)


def is_half(name: str) -> bool:
    """Whether a weight file is of the fp16 variant, which is loaded only where it is alone."""
    return _HALF.search(name) is not None


def _needed(stage: Stage) -> set[str]:
    needed = {"unet", "vae", "scheduler", "text_encoder_2", "tokenizer_2"}
    return needed | {"text_encoder", "tokenizer"} if stage is Stage.BASE else needed


def is_single_file(path: Path) -> bool:
    """Return whether a path names a single-file checkpoint, which need not exist."""
    return path.suffix == SUFFIX and not path.is_dir()


def _inspect_file(path: Path, stage: Stage, configs: Path | None) -> Checkpoint:
    if not path.exists():
        raise CheckpointError("does not exist")
    file = read_single_file(path)
    if file.stage not in (stage, None):
        raise CheckpointError(f"is an SDXL {file.stage}, where a {stage} is wanted")
    if configs is None:
        raise ConfigsError("is a single file, which lacks configs and tokenizers")
    try:
        folder = _inspect_folder(configs, stage, elsewhere=file.components)
    except CheckpointError as error:
        raise ConfigsError(f"takes its configs from {configs}, which {error.problem}") from None
    names = ("unet", "text_encoder_2")
    mismatch = file.config_mismatch({name: _json(configs, f"{name}/config.json") for name in names})
    if mismatch:
        raise CheckpointError(f"does not match the configs in {configs}: {mismatch}")
    noise = folder.noise_config
    if file.prediction_type is not None:
        noise = replace(noise, prediction_type=file.prediction_type)
    if (
        file.rescale_betas_zero_snr
    ):  # which only trailing timesteps reach: Lin et al. 2023, section 3.3
        noise = replace(noise, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    defaults = defaults_of([path.stem, file.title])
    return replace(folder, name=path.stem, noise_config=noise, file=file, defaults=defaults)


def _inspect_folder(
    folder: Path, stage: Stage, elsewhere: frozenset[str] = frozenset()
) -> Checkpoint:
    if not folder.is_dir():
        problem = (
            "is not a folder, nor a .safetensors file" if folder.exists() else "does not exist"
        )
        raise CheckpointError(problem)
    index = _json(folder, "model_index.json")
    components(index, stage)
    needed = _needed(stage)
    for name in sorted(needed):
        if not (folder / name).is_dir():
            raise CheckpointError(f"lacks its folder {name}")
    here = [name for name in NETWORKS if name in needed - elsewhere]
    variants = {_weights(folder / name, name) for name in here}
    unet, vae = _json(folder, "unet/config.json"), _json(folder, "vae/config.json")
    pixels_per_latent = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    if (
        unet.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS
        or pixels_per_latent != PIXELS_PER_LATENT
    ):
        raise CheckpointError("is not SDXL: its latents have another shape")
    if unet.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            "is told its guidance as a number (time_cond_proj_dim): not known here"
        )
    name = folder.resolve().name
    scheduler = _json(folder, "scheduler/scheduler_config.json")
    return Checkpoint(
        stage=stage,
        folder=folder,
        name=name,
        noise_config=NoiseConfig.from_scheduler_config(scheduler),
        native_size=int(unet.get("sample_size") or 128) * PIXELS_PER_LATENT,
        variant="fp16" if "fp16" in variants else None,
        text_width=unet.get("cross_attention_dim"),
        requires_aesthetics_score=bool(index.get("requires_aesthetics_score", False)),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        defaults=defaults_of(
            [name, str(index.get("_name_or_path", ""))], str(scheduler.get("_class_name", ""))
        ),
    )


def num_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """How many numbers the weights of each network have, by the headers of their files."""
    counts = checkpoint.file.num_parameters() if checkpoint.file else {}
    for name in _needed(checkpoint.stage) & set(NETWORKS) - counts.keys():
        files = _weight_files(checkpoint.folder / name)
        headers = (read_header(file, _called(file)) for file in files)
        counts[name] = sum(prod(shape) for header in headers for shape in header.shapes.values())
    return counts


def check_safety_checker(folder: Path) -> None:
    """Raise `CheckpointError`, with the folder as subject, unless it holds a safety checker."""
    try:
        _json(folder, "config.json")
        _weights(folder, "the safety checker")
    except CheckpointError as error:
        raise error.about(str(folder)) from None


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"lacks {name}") from None
    except (OSError, ValueError):
        raise CheckpointError(f"has an unreadable {name}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"has an unreadable {name}")
    return content


def _weights(folder: Path, name: str) -> str | None:
    """The variant of a network's weight files, after a look at every header."""
    files = _weight_files(folder)
    if not files:
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise CheckpointError(f"holds a pickle in {name}, where only safetensors are loaded")
        raise CheckpointError(f"lacks the weights of {name} (*.safetensors)")
    for file in files:
        read_header(file, _called(file))
    return "fp16" if is_half(files[0].name) else None


def _weight_files(folder: Path) -> list[Path]:
    """The files that are loaded: the full ones where there are any, else the halves."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not is_half(file.name)] or files


def _called(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
