"""`ModelCatalog`: the checkpoints and the device that the settings mean on this machine.

No Ray, torch or HTTP: the builder and the command line both use it.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.config.checkpoints import DEMO_NOTICE, check_pair, check_safety_checker, inspect
from serve_app.config.cloud_model import check_cloud_name
from serve_app.config.model_aliases import aliases_of
from serve_app.config.models_file import ModelEntry, read_models_file
from serve_app.config.processor import has_bf16
from serve_app.config.settings import Settings
from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.numeric_profile import default_precision
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, SettingsError
from serve_app.core.service.info import ExtensionInfo, ModelInfo, ServiceInfo
from serve_app.core.service.moderation import IMAGE_FILTER, WORD_FILTER
from serve_app.demo.vocabulary import demo_vocabulary
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, is_pair
from serve_app.runtime.checkpoints.extension_kinds import (
    EXTENSION_KINDS,
    ExtensionFile,
    ExtensionKindEntries,
)
from serve_app.runtime.checkpoints.file_digest import checkpoint_digest, file_digest
from serve_app.runtime.checkpoints.licenses import license_of, license_of_extension
from serve_app.runtime.checkpoints.model_layers import layers_of

_DEFAULT_BATCH_IMAGES = {"cuda": 4, "mps": 1, "cpu": 2}  # by kind of device


def choose_device(name: str, *, gpus: float) -> str:
    """Return cpu, cuda or mps for MODEL_DEVICE on a cluster with `gpus` GPUs.

    Raises `SettingsError` for cuda:N: Ray decides at its start which cards it uses, and shows each
    replica only its own, as `cuda`.
    """
    if name.startswith("cuda:"):
        card = name.removeprefix("cuda:")
        raise SettingsError(
            "names one card of this machine, which must be chosen before Ray starts",
            "MODEL_DEVICE",
            subject=f"MODEL_DEVICE={name}",
            remedy=f"Run: export CUDA_VISIBLE_DEVICES={card} MODEL_DEVICE=cuda, or start with: "
            "aura up",
        )
    if name != "auto":
        return name
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mps"
    return "cuda" if gpus > 0 else "cpu"


def max_batch_images(settings: Settings, device: str) -> int:
    """Return how many images may step together on a kind of device: cpu, cuda or mps."""
    return settings.model_max_batch_size or _DEFAULT_BATCH_IMAGES[device]


def precision_of(settings: Settings, device: str, *, cpu_has_bf16: bool | None = None) -> str:
    """Return the precision on a kind of device: fp32, fp16 or bf16.

    `cpu_has_bf16` says what the processor computes; None looks at that of this machine. With `auto`
    the demo stays in fp32, so that its images are the same on every CPU.
    """
    if settings.model_precision != "auto":
        return settings.model_precision or default_precision(device)
    if device != "cpu" or settings.model_checkpoint_dir is None:
        return default_precision(device)
    if cpu_has_bf16 is None:
        cpu_has_bf16 = has_bf16()
    return "bf16" if cpu_has_bf16 else default_precision(device)


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A base checkpoint under the name that requests use, and what the operator says of it."""

    checkpoint: Checkpoint
    can_be_refined: bool  # whether the refiner, if there is one, may continue its images
    license: str | None = None
    aliases: tuple[str, ...] = ()  # what else requests may call it

    @property
    def info(self) -> ModelInfo:
        """What requests depend on."""
        checkpoint = self.checkpoint
        return ModelInfo(
            checkpoint.name,
            checkpoint.native_size,
            checkpoint.noise_config,
            checkpoint.defaults,
            self.can_be_refined,
            aliases=self.aliases,
            vocabulary=demo_vocabulary() if checkpoint.path == demo_folder(Stage.BASE) else None,
            sampler_warnings=checkpoint.sampler_warnings,
        )


@dataclass(frozen=True, slots=True)
class CatalogExtension:
    """An extension under the name that requests use, and the models that it fits."""

    file: ExtensionFile
    info: ExtensionInfo
    license: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCatalog:
    """All checkpoints of the service; the first base model is the default."""

    models: tuple[CatalogModel, ...]
    refiner: Checkpoint | None
    extensions: tuple[CatalogExtension, ...] = ()
    refiner_aliases: tuple[str, ...] = ()


def find_checkpoints(
    settings: Settings, kinds: ExtensionKindEntries = EXTENSION_KINDS
) -> ModelCatalog:
    """Return the checkpoints that the settings name; the demo's if they name none.

    Raises `OperatorError` if a checkpoint or the safety checker is missing or incomplete, or if
    two checkpoints don't fit together.
    """
    if settings.safety_checker_dir:
        check_safety_checker(settings.safety_checker_dir)
    base_path = settings.model_checkpoint_dir
    refiner_folder = settings.model_refiner_checkpoint_dir
    if base_path is None:
        if refiner_folder is not None:
            raise SettingsError(
                "is set without MODEL_CHECKPOINT_DIR",
                "MODEL_CHECKPOINT_DIR",
                subject=f"MODEL_REFINER_CHECKPOINT_DIR={refiner_folder}",
                remedy="Set the base checkpoint too: aura download sdxl",
            )
        base_path, refiner_folder = demo_folder(Stage.BASE), demo_folder(Stage.REFINER)
    base = inspect(base_path, Stage.BASE, configs=settings.model_config_dir)
    refiner = None
    if refiner_folder is not None:
        refiner = inspect(refiner_folder, Stage.REFINER)
        check_pair(base, refiner)
    is_demo = settings.model_checkpoint_dir is None
    models = (
        CatalogModel(
            base, can_be_refined=True, aliases=() if is_demo else aliases_of(base_path, base)
        ),
        *listed_models(settings, base, refiner, kinds),
    )
    check_cloud_name(settings, [model.checkpoint.name for model in models])
    return ModelCatalog(
        models,
        refiner,
        listed_extensions(settings, models, kinds),
        aliases_of(refiner_folder, refiner) if refiner and refiner_folder and not is_demo else (),
    )


def listed_models(
    settings: Settings,
    base: Checkpoint | None,
    refiner: Checkpoint | None,
    kinds: ExtensionKindEntries = EXTENSION_KINDS,
) -> tuple[CatalogModel, ...]:
    """Return the models of MODELS_FILE. `base` and `refiner` are None if they can't be used.

    Raises `OperatorError` that names the file and the key.
    """
    entries = read_models_file(settings.models_file, kinds).models
    for name in {checkpoint.name for checkpoint in (base, refiner) if checkpoint} & set(entries):
        raise SettingsError(
            "is the name of the checkpoint of MODEL_CHECKPOINT_DIR or of its refiner",
            "MODELS_FILE",
            subject=f"MODELS_FILE={settings.models_file}: models.{name}",
            remedy="Choose another name",
        )
    return tuple(_listed_model(name, entry, settings, refiner) for name, entry in entries.items())


def listed_extensions(
    settings: Settings,
    models: Sequence[CatalogModel],
    kinds: ExtensionKindEntries = EXTENSION_KINDS,
) -> tuple[CatalogExtension, ...]:
    """Return the extensions of MODELS_FILE, each with the models that it fits.

    Raises `OperatorError` that names the file and the key, also if an extension fits no model.
    """
    extensions = []
    entries = read_models_file(settings.models_file, kinds).extensions
    layers_by_model = [layers_of(model.checkpoint) for model in models] if entries else []
    for key, entry in entries.items():
        kind = kinds[key.kind]
        where = f"MODELS_FILE={settings.models_file}: {kind.section}.{key.name}.path"
        try:
            file = kind.inspect(entry.path)
        except CheckpointError as error:
            raise error.about(f"{where}={entry.path}") from None
        misfits = {layers.model: file.misfit(layers) for layers in layers_by_model}
        fits = tuple(name for name, misfit in misfits.items() if misfit is None)
        if models and not fits:
            raise CheckpointError(
                "; it ".join(filter(None, misfits.values())), subject=f"{where}={entry.path}"
            )
        info = ExtensionInfo(key.kind, key.name, fits, entry.weight)
        extensions.append(CatalogExtension(file, info, entry.license))
    return tuple(extensions)


def _listed_model(
    name: str, entry: ModelEntry, settings: Settings, refiner: Checkpoint | None
) -> CatalogModel:
    """Return a model of MODELS_FILE; the checkpoint decides what its entry leaves out."""
    where, own = f"MODELS_FILE={settings.models_file}: models.{name}", settings.model_checkpoint_dir
    folder = own if own and own.is_dir() else None
    configs = entry.config or settings.model_config_dir or folder
    checkpoint = inspect(entry.path, Stage.BASE, configs=configs, setting=f"{where}.path")
    own_defaults = checkpoint.defaults
    defaults = ModelDefaults(
        steps=entry.steps or own_defaults.steps,
        guidance=own_defaults.guidance if entry.guidance is None else entry.guidance,
        sampler=entry.sampler or own_defaults.sampler,
        guidance_interval=entry.guidance_interval,
        cache=entry.cache,
    )
    if defaults.sampler not in checkpoint.noise_config.samplers:
        raise SettingsError(
            f"is {defaults.sampler}, which steps by training timesteps, and this model has none "
            f"(EDM); choose one of {', '.join(checkpoint.noise_config.samplers)}",
            "MODELS_FILE",
            subject=f"{where}.sampler",
        )
    limit = defaults.sampler.definition.distilled_steps
    if limit is not None and defaults.steps > limit:
        raise SettingsError(
            f"must be at most {limit} with the sampler {defaults.sampler}, got {defaults.steps}",
            "MODELS_FILE",
            subject=f"{where}.steps",
        )
    fits = refiner is None or is_pair(checkpoint, refiner)
    if entry.refiner and not fits:
        raise SettingsError(
            "is true, but the refiner can't continue its images: they differ in noise schedule or "
            "native size",
            "MODELS_FILE",
            subject=f"{where}.refiner",
        )
    is_distilled = own_defaults.guidance is not None
    wanted = not is_distilled if entry.refiner is None else entry.refiner
    named = replace(checkpoint, name=name, defaults=defaults)
    listed_in = [settings.models_file.parent] if settings.models_file else []
    return CatalogModel(
        named,
        can_be_refined=wanted and fits,
        license=entry.license,
        aliases=aliases_of(entry.path, named, *listed_in),
    )


def service_info(settings: Settings, catalog: ModelCatalog, device: str) -> ServiceInfo:
    """Return what responses, /health and /licenses say of the service."""
    filters = {
        WORD_FILTER: settings.safety_words_file,
        IMAGE_FILTER: settings.safety_checker_dir,
    }
    refiner = catalog.refiner
    licenses = [license_of(model.checkpoint, model.license) for model in catalog.models]
    if refiner:
        licenses.append(license_of(refiner))
    licenses += [
        license_of_extension(extension.info.name, extension.file, extension.license)
        for extension in catalog.extensions
    ]
    return ServiceInfo(
        models=tuple(
            replace(model.info, weights=checkpoint_digest(model.checkpoint))
            for model in catalog.models
        ),
        refiner=refiner.name if refiner else None,
        refiner_aliases=catalog.refiner_aliases,
        device=device,
        precision=precision_of(settings, device),
        default_image_count=settings.default_image_count,
        warnings=() if settings.model_checkpoint_dir else (DEMO_NOTICE,),
        licenses=tuple(licenses),
        max_prompt_chars=settings.max_prompt_chars,
        safety_filters=tuple(name for name, setting in filters.items() if setting),
        terms_required=settings.require_terms_acceptance,
        extensions=tuple(
            replace(extension.info, weights=file_digest(extension.file.path))
            for extension in catalog.extensions
        ),
        max_extensions=settings.max_loaded_loras,
        refiner_weights=checkpoint_digest(refiner) if refiner else "",
    )
