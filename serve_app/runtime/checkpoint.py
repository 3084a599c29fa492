"""A checkpoint folder, read without loading it: is it whole, and what does it say of itself?

Knows no torch, so that the builder and the command line can ask in milliseconds.
Only safetensors are taken: a pickle can run code, and the file's own header is what counts, not
its name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError
from serve_app.core.schedule import NoiseConfig
from serve_app.core.spec import PIXELS_PER_LATENT, Stage

_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_HALF = re.compile(r"\.fp16[.-]")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
REPOSITORY = {
    Stage.BASE: "stabilityai/stable-diffusion-xl-base-1.0",
    Stage.REFINER: "stabilityai/stable-diffusion-xl-refiner-1.0",
}
DOWNLOAD = {
    Stage.BASE: "python -m serve_app download sdxl",
    Stage.REFINER: "python -m serve_app download sdxl-refiner",
}
VARIABLE = {
    Stage.BASE: "MODEL_CHECKPOINT_DIR",
    Stage.REFINER: "MODEL_REFINER_CHECKPOINT_DIR",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that holds all a stage needs. Equal facts, equal pictures (weights apart)."""

    stage: Stage
    folder: Path
    name: str  # how answers call it
    noise: NoiseConfig
    native: int  # native side of a picture, pixels
    variant: str | None  # of the weight files: None or "fp16"
    aesthetics: bool  # five size ids, the last an aesthetic score, as the refiner was trained
    zeros_for_absent: bool  # an absent negative prompt is zeros, not the encoding of ""


def inspect(folder: Path, stage: Stage) -> Checkpoint:
    """The facts of a whole checkpoint.

    Raises `CheckpointError` with one line that names the variable, the path and the next command.
    """
    try:
        return read_folder(folder, stage)
    except CheckpointError as error:
        raise CheckpointError(
            f"{VARIABLE[stage]}={folder} {error}. Get it whole with: {DOWNLOAD[stage]}"
        ) from None


def check_pair(base: Checkpoint, refiner: Checkpoint) -> None:
    """Returns when the refiner can continue what base began; raises `CheckpointError` if not."""
    if not base.noise.same_noise(refiner.noise) or base.native != refiner.native:
        raise CheckpointError(
            f"{VARIABLE[Stage.REFINER]}={refiner.folder} can't continue pictures of "
            f"{VARIABLE[Stage.BASE]}={base.folder}: they differ in noise schedule or native size. "
            f"Unset {VARIABLE[Stage.REFINER]}, or choose the refiner made for this base"
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


def read_folder(folder: Path, stage: Stage) -> Checkpoint:
    """As `inspect`, but what `CheckpointError` says is the bare problem, as "does not exist"."""
    if not folder.is_dir():
        raise CheckpointError("is not a folder" if folder.exists() else "does not exist")
    index = _json(folder, "model_index.json")
    components(index, stage)
    needed = _needed(stage)
    for name in sorted(needed):
        if not (folder / name).is_dir():
            raise CheckpointError(f"lacks its folder {name}")
    variants = {_weights(folder / name, name) for name in NETWORKS if name in needed}
    unet, vae = _json(folder, "unet/config.json"), _json(folder, "vae/config.json")
    pixels_per_latent = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    if unet.get("in_channels", 4) != 4 or pixels_per_latent != PIXELS_PER_LATENT:
        raise CheckpointError("is not SDXL: its latents have another shape")
    return Checkpoint(
        stage=stage,
        folder=folder,
        name=folder.resolve().name,
        noise=NoiseConfig.from_scheduler_config(_json(folder, "scheduler/scheduler_config.json")),
        native=int(unet.get("sample_size") or 128) * PIXELS_PER_LATENT,
        variant="fp16" if "fp16" in variants else None,
        aesthetics=bool(index.get("requires_aesthetics_score", False)),
        zeros_for_absent=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """How many numbers the weights of each network have, by the headers of their files."""
    counts: dict[str, int] = {}
    for name in NETWORKS:
        for file in _weight_files(checkpoint.folder / name):
            shapes = (entry["shape"] for entry in _header(file)[0].values() if "shape" in entry)
            counts[name] = counts.get(name, 0) + sum(map(prod, shapes))
    return counts


def check_checker(folder: Path) -> None:
    """Returns when a folder holds a safety checker; raises `CheckpointError` if not."""
    try:
        _json(folder, "config.json")
        _weights(folder, "the safety checker")
    except CheckpointError as error:
        raise CheckpointError(
            f"SAFETY_CHECKER_DIR={folder} {error}. Get it with: "
            f"hf download CompVis/stable-diffusion-safety-checker --local-dir {folder}"
        ) from None


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
        _check_header(file)
    return "fp16" if is_half(files[0].name) else None


def _weight_files(folder: Path) -> list[Path]:
    """The files that are loaded: the full ones where there are any, else the halves."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not is_half(file.name)] or files


def _check_header(file: Path) -> None:
    """Eight bytes of length, a JSON header, and as many bytes of data as the header promises."""
    try:
        header, length = _header(file)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        whole = file.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        raise CheckpointError(
            f"holds {file.parent.name}/{file.name}, which is no safetensors file inside"
        ) from None
    if not whole:
        raise CheckpointError(f"holds a truncated {file.parent.name}/{file.name}")


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and its length in bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(file.stat().st_size, _LONGEST_HEADER):
            raise ValueError
        header: dict[str, Any] = json.loads(stream.read(length))
    return header, length
