"""What the service is at this moment, as plain values: for answers, for /health, for an operator.

Knows no HTTP and no Ray: the conductor fills these in, the ingress shows them.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from serve_app.core.diffusion.model_defaults import PLAIN, Defaults
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
class ModelFacts:
    """What a request must know of the base checkpoint that is to make its pictures."""

    name: str  # never a path
    native: int  # native side of a picture, pixels
    noise: NoiseConfig
    defaults: Defaults = PLAIN
    refined: bool = True  # whether the refiner, where there is one, may continue its pictures

    @property
    def sizes(self) -> SizeRules:
        """The picture sizes that are legal with it."""
        return SizeRules(self.native)


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What a request must know of a LoRA that its pictures are to wear."""

    name: str  # never a path
    models: tuple[str, ...]  # the base models that it fits
    weight: float = 1.0  # when the request says none


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What does not change while the service runs."""

    models: tuple[ModelFacts, ...]  # the one that is taken when nobody names any, first
    refiner: str | None  # the refiner's name, None without one
    device: str
    precision: str
    image_count: int  # images per request when the caller does not say
    notices: tuple[str, ...] = ()  # warnings that every answer carries
    licenses: tuple[License, ...] = ()  # one per model and LoRA
    prompt_chars: int = 500  # the longest prompt on our own routes
    filters: tuple[str, ...] = ()  # the safety filters that are on
    terms_required: bool = False  # whether callers must accept the licences first
    loras: tuple[LoraFacts, ...] = ()
    loras_at_once: int = 8  # that one picture may wear

    @property
    def model(self) -> ModelFacts:
        """The model that is taken when nobody names one."""
        return self.models[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models, the default one first."""
        return tuple(model.name for model in self.models)

    def named(self, name: str) -> ModelFacts | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)

    def lora(self, name: str) -> LoraFacts | None:
        """The LoRA of that name."""
        return next((lora for lora in self.loras if lora.name == name), None)

    def refines(self, model: ModelFacts) -> bool:
        """Whether there is a refiner that may continue a model's pictures."""
        return self.refiner is not None and model.refined

    @property
    def terms(self) -> str:
        """A digest of all the licences: who accepted them accepted this."""
        return sha256(repr(self.licenses).encode()).hexdigest()[:16]


class Condition(StrEnum):
    """Whether an image could be made now."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Health:
    """What changes: replicas ready per stage, and GPU seconds owed to what was accepted."""

    condition: Condition
    reason: str  # "" when ready, else one sentence
    replicas: dict[str, int]  # by stage
    owed_seconds: float
    shortfalls: tuple[str, ...] = ()  # what replicas' devices had no room for
