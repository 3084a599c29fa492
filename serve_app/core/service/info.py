"""What the service is at this moment, as plain values: for answers, for /health, for an operator.

Knows no HTTP and no Ray: the conductor fills these in, the ingress shows them.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from serve_app.core.diffusion.model_defaults import SDXL_DEFAULTS, ModelDefaults
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.sizes import SizeRules


@dataclass(frozen=True, slots=True)
class License:
    """Under what terms a model's pictures are made, to be passed on to whoever asks for them."""

    model: str
    name: str
    url: str  # "" when the operator's own folder is all there is
    restrictions: tuple[str, ...]  # a summary in plain words; the text binds
    text: str  # the whole licence as it lies in the checkpoint folder, "" when none does


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a request must know of the base checkpoint that is to make its pictures."""

    name: str  # never a path
    native_size: int  # native side of a picture, pixels
    noise_config: NoiseConfig
    defaults: ModelDefaults = SDXL_DEFAULTS
    can_be_refined: bool = (
        True  # whether the refiner, where there is one, may continue its pictures
    )

    @property
    def sizes(self) -> SizeRules:
        """The picture sizes that are legal with it."""
        return SizeRules(self.native_size)


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """What a request must know of a LoRA that its pictures are to wear."""

    name: str  # never a path
    models: tuple[str, ...]  # the base models that it fits
    default_weight: float = 1.0  # when the request says none


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What does not change while the service runs."""

    models: tuple[ModelInfo, ...]  # the one that is taken when nobody names any, first
    refiner: str | None  # the refiner's name, None without one
    device: str
    precision: str
    default_image_count: int  # images per request when the caller does not say
    warnings: tuple[str, ...] = ()  # warnings that every answer carries
    licenses: tuple[License, ...] = ()  # one per model and LoRA
    max_prompt_chars: int = 500  # the longest prompt on our own routes
    safety_filters: tuple[str, ...] = ()  # the safety filters that are on
    terms_required: bool = False  # whether callers must accept the licences first
    loras: tuple[LoraInfo, ...] = ()
    max_loras: int = 8  # that one picture may wear

    @property
    def default_model(self) -> ModelInfo:
        """The model that is taken when nobody names one."""
        return self.models[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of all models, the default one first."""
        return tuple(model.name for model in self.models)

    def find_model(self, name: str) -> ModelInfo | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)

    def find_lora(self, name: str) -> LoraInfo | None:
        """The LoRA of that name."""
        return next((lora for lora in self.loras if lora.name == name), None)

    def can_refine(self, model: ModelInfo) -> bool:
        """Whether there is a refiner that may continue a model's pictures."""
        return self.refiner is not None and model.can_be_refined

    @property
    def terms_digest(self) -> str:
        """A digest of all the licences: who accepted them accepted this."""
        return sha256(repr(self.licenses).encode()).hexdigest()[:16]


class HealthStatus(StrEnum):
    """Whether an image could be made now."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Health:
    """What changes: replicas ready per stage, and GPU seconds owed to what was accepted."""

    status: HealthStatus
    reason: str  # "" when ready, else one sentence
    replicas: dict[str, int]  # by stage
    owed_seconds: float
    shortfalls: tuple[str, ...] = ()  # what replicas' devices had no room for
