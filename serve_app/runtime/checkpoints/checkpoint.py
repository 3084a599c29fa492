"""A checkpoint, inspected without loading it: is it complete, and what does it say of itself?

It is a folder in diffusers' layout, or a single file with a folder for the configs it lacks. No
torch, so the application builder and the command line get their answer in milliseconds. Only
safetensors are accepted, because a pickle can run code; the header of a file counts, not its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.model_defaults import SDXL_DEFAULTS, ModelDefaults, defaults_of
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler, read_scheduler
from serve_app.core.diffusion.spec import LATENT_CHANNELS, PIXELS_PER_LATENT, Stage
from serve_app.core.errors import CheckpointError, ConfigsError, SchedulerNotSupported
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.file_markers import LatentScaling
from serve_app.runtime.checkpoints.hub_cache import repository_of, snapshot_folder
from serve_app.runtime.checkpoints.network_folder import (
    check_weights,
    read_headers,
    read_json,
    weight_files,
)
from serve_app.runtime.checkpoints.single_file import SUFFIX, SingleFile, read_single_file

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
REPOSITORY = {
    Stage.BASE: "stabilityai/stable-diffusion-xl-base-1.0",
    Stage.REFINER: "stabilityai/stable-diffusion-xl-refiner-1.0",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a stage needs to know of its checkpoint before it loads the weights."""

    stage: Stage
    folder: Path  # of everything, or of what `file` lacks
    name: str  # in responses and requests
    scheduler: CheckpointScheduler  # its own: the noise, and the sampler that equals it
    native_size: int  # side of the images it was trained on, in pixels
    variant: str | None  # of the weight files: None or "fp16"
    requires_aesthetics_score: bool  # the last of five time ids is an aesthetic score (refiner)
    force_zeros_for_empty_prompt: bool  # an absent negative prompt is zeros, not an encoded ""
    file: SingleFile | None = None  # where the weights are, if not in the folder
    defaults: ModelDefaults = SDXL_DEFAULTS
    cross_attention_dim: int | None = None  # width of the text embeddings its UNet attends to
    repository: str = ""  # OWNER/NAME, as the hub's cache or our own download says

    @property
    def path(self) -> Path:
        """The folder or the file of its weights."""
        return self.file.path if self.file else self.folder

    @property
    def noise_config(self) -> NoiseConfig:
        """The noise that it was trained on."""
        return self.scheduler.noise

    @property
    def latent_scaling(self) -> LatentScaling | None:
        """How its latents are normalized, where that differs from the config of its VAE."""
        return self.file.markers.latents if self.file else None

    @property
    def sampler_warnings(self) -> tuple[str, ...]:
        """What images by the default sampler lack of the checkpoint's own scheduler."""
        is_own = self.defaults.sampler is self.scheduler.sampler
        return self.scheduler.warnings if is_own else ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that say which model it is."""
        title = self.file.title if self.file else ""
        return (self.name, self.path.name, self.repository, title)


def inspect(path: Path, stage: Stage, *, configs: Path | None = None) -> Checkpoint:
    """Return what a complete checkpoint says of itself.

    `path` is a folder or a .safetensors file; a repository's folder in the hub's cache means its
    current snapshot. A file takes its configs, its tokenizers and the
    networks that it lacks from `configs`, a diffusers folder. Raises `CheckpointError` with the
    path as its subject, and its subclass `ConfigsError` when `configs` is what is missing.
    """
    try:
        if is_single_file(path):
            return _inspect_file(path, stage, configs)
        folder = snapshot_folder(path)
        _check_no_single_file(folder)
        return _inspect_folder(folder, stage)
    except CheckpointError as error:
        raise error.about(str(path)) from None


def is_pair(base: Checkpoint, refiner: Checkpoint) -> bool:
    """Return whether the refiner can continue images that the base model began."""
    return (
        base.noise_config.has_same_noise_as(refiner.noise_config)
        and base.native_size == refiner.native_size
    )


def components(index: Mapping[str, Any], stage: Stage) -> frozenset[str]:
    """Return the components that a model_index.json names, each the name of a folder.

    Raises `CheckpointError` when one that the stage needs is missing.
    """
    present = {
        name
        for name, entry in index.items()  # [library, class], or [None, None]
        if isinstance(entry, list) and entry and entry[0] is not None
    }
    for name in sorted(_required(stage) - present):
        raise CheckpointError(f"lacks {name} in model_index.json")
    return frozenset(present)


def is_single_file(path: Path) -> bool:
    """Return whether a path names a single-file checkpoint, which need not exist."""
    return path.suffix == SUFFIX and not path.is_dir()


def num_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of parameters of each network, from the headers of the weight files."""
    counts = checkpoint.file.num_parameters() if checkpoint.file else {}
    for name in _required(checkpoint.stage) & set(NETWORKS) - counts.keys():
        files = weight_files(checkpoint.folder / name)
        counts[name] = sum(
            prod(shape) for header in read_headers(files) for shape in header.shapes.values()
        )
    return counts


def check_safety_checker(folder: Path) -> None:
    """Raise `CheckpointError`, with the folder as subject, unless it holds a safety checker."""
    try:
        folder = snapshot_folder(folder)
        read_json(folder, "config.json")
        check_weights(folder, "the safety checker")
    except CheckpointError as error:
        raise error.about(str(folder)) from None


def _required(stage: Stage) -> set[str]:
    required = {"unet", "vae", "scheduler", "text_encoder_2", "tokenizer_2"}
    return required | {"text_encoder", "tokenizer"} if stage is Stage.BASE else required


def _inspect_file(path: Path, stage: Stage, configs: Path | None) -> Checkpoint:
    if not path.exists():
        raise CheckpointError("does not exist")
    file = read_single_file(path)
    if file.stage not in (stage, None):
        raise CheckpointError(f"is an SDXL {file.stage}, where a {stage} is wanted")
    if configs is None:
        raise ConfigsError("is a single file, which lacks configs and tokenizers")
    try:
        configs = snapshot_folder(configs)
        folder = _inspect_folder(configs, stage, in_file=file.components)
    except CheckpointError as error:
        raise ConfigsError(
            f"takes its configs from {configs}, which {error.problem}", remedy=error.remedy
        ) from None
    mismatch = file.config_mismatch(
        {name: read_json(configs, f"{name}/config.json") for name in ("unet", "text_encoder_2")}
    )
    if mismatch:
        raise CheckpointError(f"does not match the configs in {configs}: {mismatch}")
    scheduler, repository = file.markers.over(folder.scheduler), repository_of(path)
    return replace(
        folder,
        name=path.stem,
        scheduler=scheduler,
        file=file,
        defaults=defaults_of([path.stem, file.title, repository], scheduler),
        repository=repository,
    )


def _inspect_folder(
    folder: Path, stage: Stage, in_file: frozenset[str] = frozenset()
) -> Checkpoint:
    """Inspect a diffusers folder, which need not have the networks that are `in_file`."""
    if not folder.is_dir():
        problem = (
            "is not a folder, nor a .safetensors file" if folder.exists() else "does not exist"
        )
        raise CheckpointError(problem)
    index = read_json(folder, "model_index.json")
    components(index, stage)
    required = _required(stage)
    for name in sorted(required):
        if not (folder / name).is_dir():
            raise CheckpointError(f"lacks its folder {name}")
    networks = [name for name in NETWORKS if name in required - in_file]
    variants = {check_weights(folder / name, name) for name in networks}
    unet, vae = read_json(folder, "unet/config.json"), read_json(folder, "vae/config.json")
    in_channels = unet.get("in_channels", LATENT_CHANNELS)
    pixels_per_latent = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    if (in_channels, pixels_per_latent) != (LATENT_CHANNELS, PIXELS_PER_LATENT):
        raise CheckpointError("is not SDXL: its latents have another shape")
    if unet.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            "takes its guidance scale as an embedding (time_cond_proj_dim), which is not supported"
        )
    cached = repository_of(folder)
    name = cached.rpartition("/")[2] or folder.resolve().name
    record = None if cached else acceptance.read(folder)
    repository = record.repository if record else cached
    scheduler = _read_scheduler(folder, index)
    return Checkpoint(
        stage=stage,
        folder=folder,
        name=name,
        scheduler=scheduler,
        native_size=int(unet.get("sample_size") or 128) * PIXELS_PER_LATENT,
        variant="fp16" if "fp16" in variants else None,
        cross_attention_dim=unet.get("cross_attention_dim"),
        requires_aesthetics_score=bool(index.get("requires_aesthetics_score", False)),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        defaults=defaults_of([name, repository, str(index.get("_name_or_path", ""))], scheduler),
        repository=repository,
    )


def _check_no_single_file(folder: Path) -> None:
    """Raise `CheckpointError` for a folder that only holds single files, with their names."""
    files = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if files and not (folder / "model_index.json").exists():
        raise CheckpointError(
            f"lacks model_index.json; it holds {', '.join(files[:3])}",
            remedy=f"Name a single file instead, as {folder / files[0]}",
        )


def _read_scheduler(folder: Path, index: Mapping[str, Any]) -> CheckpointScheduler:
    """Read a folder's scheduler, of the class in its model_index.json, as diffusers does."""
    entry = index.get("scheduler")  # [library, class]
    name = entry[-1] if isinstance(entry, list) and isinstance(entry[-1], str) else ""
    config = read_json(folder, SCHEDULER_FILE)
    try:
        return read_scheduler(config, name)
    except CheckpointError as error:
        raise SchedulerNotSupported(error.problem) from None
