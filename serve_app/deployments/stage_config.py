"""What a stage replica needs to know, by value: it reads no settings. No torch, no Ray."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from on the replica's machine."""

    name: str
    path: Path | None  # None: the demo, wherever the package is installed
    configs_dir: Path | None = None  # folder of what a single file lacks
    stage: Stage = Stage.BASE

    @property
    def key(self) -> ModelKey:
        """The key by which samples name it."""
        return ModelKey(self.stage, self.name)


@dataclass(frozen=True, slots=True)
class ExtensionSource:
    """Where an extension comes from on the replica's machine, and the base models that it fits."""

    kind: str
    name: str
    path: Path
    models: tuple[str, ...]

    @property
    def key(self) -> ExtensionKey:
        """The key by which images name it, together with a weight."""
        return ExtensionKey(self.kind, self.name)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What a replica runs, and how."""

    models: tuple[ModelSource, ...]  # base models, the default one first, then the refiner
    device: str  # cpu, cuda or mps
    precision: str | None
    xformers: bool
    cpu_threads: int
    max_batch_images: int  # images that step together, where the device has memory for them
    strict: bool
    snapshot_interval_steps: int
    safety_checker_dir: Path | None = None
    max_loaded_models: int = 1  # in memory at a time
    extensions: tuple[ExtensionSource, ...] = ()
    max_loaded_extensions: int = 1  # attached to each model at a time
    memory_fraction: float = 1.0  # of the card
    compile_mode: str = "off"  # MODEL_COMPILE
    quantization: str = "off"  # MODEL_QUANTIZATION
    remember_proofs: bool = False  # of batch invariance, in the cache folder of its machine

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that it runs, base first."""
        return tuple(dict.fromkeys(source.stage for source in self.models))
