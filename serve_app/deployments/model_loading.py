"""`load_models`: the models and extensions of a replica, inspected, and those in memory loaded."""

from dataclasses import replace

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.runtime.build import model_loaders
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS, ExtensionKindEntries
from serve_app.runtime.extensions.extension_set import ExtensionFiles
from serve_app.runtime.extensions.registry import runtime_kinds
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from serve_app.runtime.proof_file import ProofFile


def load_models(config: StageConfig, kinds: ExtensionKindEntries = EXTENSION_KINDS) -> ModelCache:
    """Inspect all models and extensions of a replica, and load the first model.

    A replica that runs both stages loads the refiner too, which never goes back to disk. One model
    more than fit in memory stays on the host, so that the base model need not go back to disk
    either when the refiner continues its images. Raises `OperatorError`.
    """
    device = open_device(
        config.device,
        precision=config.precision,
        xformers=config.xformers,
        cpu_threads=config.cpu_threads,
        memory_fraction=config.memory_fraction,
        compile_mode=config.compile_mode,
        quantization=config.quantization,
    )
    safety_dir = config.safety_checker_dir
    loaders = model_loaders(
        map(_checkpoint, config.models),
        device,
        images=config.max_batch_images,
        strict=config.strict,
        safety=ImageSafetyChecker(safety_dir, device) if safety_dir else None,
        extensions=_extension_files(config, kinds),
        proofs=ProofFile.default() if config.remember_proofs else None,
    )
    pinned = [source.key for source in config.models if source.stage is not config.stages[0]]
    return ModelCache(
        loaders,
        capacity=config.max_loaded_models,
        offload_capacity=len(pinned),
        pinned=pinned,
        extension_capacity=config.max_loaded_extensions,
    )


def _checkpoint(source: ModelSource) -> Checkpoint:
    path = source.path or demo_folder(source.stage)
    return replace(inspect(path, source.stage, configs=source.configs_dir), name=source.name)


def _extension_files(
    config: StageConfig, kinds: ExtensionKindEntries
) -> dict[ModelKey, ExtensionFiles]:
    """Return the extensions that fit each base model."""
    files = {source: kinds[source.kind].inspect(source.path) for source in config.extensions}
    classes = runtime_kinds(kinds)
    return {
        model.key: ExtensionFiles(
            classes,
            {source.key: file for source, file in files.items() if model.name in source.models},
            config.max_loaded_extensions,
        )
        for model in config.models
        if model.stage is Stage.BASE
    }
