"""A checkpoint, inspected without loading it: is it complete, and what does it say of itself?

It is a folder in diffusers' layout, or a single file with a folder for the configs it lacks. No
torch, so the application builder and the command line get their answer in milliseconds. Only
safetensors are accepted, because a pickle can run code; the header of a file counts, not its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.model_defaults import SDXL_DEFAULTS, ModelDefaults, defaults_of
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler, read_scheduler
from serve_app.core.diffusion.spec import PIXELS_PER_LATENT, Stage
from serve_app.core.errors import CheckpointError, ConfigsError, SchedulerNotSupported
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.clip_configs import ProjectedTextEncoderConfig, TextEncoderConfig
from serve_app.runtime.checkpoints.diffusion_configs import UNetConfig, VaeConfig
from serve_app.runtime.checkpoints.file_markers import LatentScaling
from serve_app.runtime.checkpoints.hub_cache import repository_of, snapshot_folder
from serve_app.runtime.checkpoints.network_config import NetworkConfig
from serve_app.runtime.checkpoints.network_folder import read_json
from serve_app.runtime.checkpoints.network_weights import (
    SafetyCheckerFiles,
    network_in_folder,
    plans_in_file,
    read_config,
    safety_checker_in_folder,
)
from serve_app.runtime.checkpoints.single_file import SUFFIX, SingleFile, read_single_file
from serve_app.runtime.checkpoints.tokenizer_folder import check_tokenizer
from serve_app.runtime.checkpoints.weight_plan import WeightPlan

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
INDEX_FILE = "model_index.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
_TEXT_ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_FLAGS = {"requires_aesthetics_score": False, "force_zeros_for_empty_prompt": True}
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
    requires_aesthetics_score: bool  # the last of five time ids is an aesthetic score (refiner)
    force_zeros_for_empty_prompt: bool  # an absent negative prompt is zeros, not an encoded ""
    file: SingleFile | None = None  # where the weights are, if not in the folder
    defaults: ModelDefaults = SDXL_DEFAULTS
    repository: str = ""  # OWNER/NAME, as the hub's cache or our own download says

    @property
    def path(self) -> Path:
        """The folder or the file of its weights."""
        return self.file.path if self.file else self.folder

    @property
    def native_latent_shape(self) -> tuple[int, int]:
        """The height and width of the latents of such images."""
        return (self.native_size // PIXELS_PER_LATENT,) * 2

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


def weight_plans(checkpoint: Checkpoint) -> dict[str, WeightPlan]:
    """Return where each tensor of each network comes from, from the headers of the weight files.

    Raises `CheckpointError`, with the path as its subject, for tensors that are missing, surplus or
    of another shape or type.
    """
    try:
        return _weight_plans(checkpoint.folder, checkpoint.stage, checkpoint.file)
    except CheckpointError as error:
        raise error.about(str(checkpoint.path)) from None


def num_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of parameters of each network, from the headers of the weight files."""
    return {name: plan.num_parameters for name, plan in weight_plans(checkpoint).items()}


def check_safety_checker(folder: Path) -> SafetyCheckerFiles:
    """Return the files of a safety checker.

    Raises `CheckpointError`, with the folder as subject, unless it is whole.
    """
    try:
        return safety_checker_in_folder(snapshot_folder(folder))
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
    _weight_plans(configs, stage, file)
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
    index = read_json(folder, INDEX_FILE)
    components(index, stage)
    required = _required(stage)
    for name in sorted(required):
        if not (folder / name).is_dir():
            raise CheckpointError(f"lacks its folder {name}")
    networks = [name for name in NETWORKS if name in required]
    configs = {name: read_config(folder, name) for name in networks}
    unet, vae = configs["unet"], configs["vae"]
    assert isinstance(unet, UNetConfig)
    assert isinstance(vae, VaeConfig)
    if 2 ** (len(vae.block_out_channels) - 1) != PIXELS_PER_LATENT:
        raise CheckpointError("is not SDXL: its latents have another shape")
    flags = {flag: _flag(index, flag, default=default) for flag, default in _FLAGS.items()}
    _check_widths(configs, ids=5 if flags["requires_aesthetics_score"] else 6)
    for name in sorted(required & _TEXT_ENCODERS.keys()):
        encoder = configs[_TEXT_ENCODERS[name]]
        assert isinstance(encoder, TextEncoderConfig)
        check_tokenizer(folder / name, encoder.vocab_size)
    for name in networks:
        if name not in in_file:
            network_in_folder(folder, name)
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
        native_size=unet.latent_side * PIXELS_PER_LATENT,
        requires_aesthetics_score=flags["requires_aesthetics_score"],
        force_zeros_for_empty_prompt=flags["force_zeros_for_empty_prompt"],
        defaults=defaults_of([name, repository, str(index.get("_name_or_path", ""))], scheduler),
        repository=repository,
    )


def _check_no_single_file(folder: Path) -> None:
    """Raise `CheckpointError` for a folder that only holds single files, with their names."""
    files = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if files and not (folder / INDEX_FILE).exists():
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


def _weight_plans(folder: Path, stage: Stage, file: SingleFile | None) -> dict[str, WeightPlan]:
    in_file = file.prefixes if file else {}
    plans = {
        name: network_in_folder(folder, name)
        for name in NETWORKS
        if name in _required(stage) and name not in in_file
    }
    if file:
        plans |= plans_in_file(file.header, file.path.name, in_file, folder)
    return plans


def _flag(index: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return an option of the pipeline; null is false, as in diffusers."""
    value = index.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"has a model_index.json whose {name} must be true or false")
    return bool(value)


def _check_widths(configs: Mapping[str, NetworkConfig], ids: int) -> None:
    """Raise `CheckpointError` unless the text encoders and the UNet fit together.

    The UNet attends to the embeddings of all text encoders, and adds to its time embedding the
    pooled embedding of the last and `ids` numbers about the image's size.
    """
    unet, last = configs["unet"], configs["text_encoder_2"]
    assert isinstance(unet, UNetConfig)
    assert isinstance(last, ProjectedTextEncoderConfig)
    encoders = [config for config in configs.values() if isinstance(config, TextEncoderConfig)]
    facts = {
        "cross_attention_dim": (
            unet.text_dims[0],
            sum(encoder.hidden_size for encoder in encoders),
            "the hidden_size of its text encoders",
        ),
        "projection_class_embeddings_input_dim": (
            unet.projection_class_embeddings_input_dim,
            last.projection_dim + ids * unet.addition_time_embed_dim,
            f"the projection_dim of text_encoder_2 and {ids} * addition_time_embed_dim",
        ),
    }
    for name, (value, expected, source) in facts.items():
        if value != expected:
            raise CheckpointError(
                f"has a unet/config.json whose {name} must be {expected}, {source}, got {value}"
            )
