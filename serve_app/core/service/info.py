"""What the service is and how it is, as plain values: for responses, /health and the operator.

No HTTP and no Ray: the conductor fills these in, and the ingress shows them.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import PurePosixPath

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.model_defaults import SDXL_DEFAULTS, ModelDefaults
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.vocabulary import Vocabulary
from serve_app.core.service.warm_ups import WarmUp

_MAX_PATH_CHARS = 4096


@dataclass(frozen=True, slots=True)
class License:
    """The terms under which a model's images are made, for the callers who request them."""

    model: str
    name: str
    url: str  # "" where the model's folder names none
    restrictions: tuple[str, ...]  # a summary; only the text is binding
    text: str  # the whole licence of the checkpoint folder; "" if it has none


@dataclass(frozen=True, slots=True)
class CloudModel:
    """A model that somebody else's service runs: requests for it leave this machine."""

    name: str  # as that service calls it
    provider: str  # whose service it is, as in "Google"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a request must know about a base checkpoint, or about a cloud's model."""

    name: str  # never a path
    native_size: int  # side of the images it was trained on, pixels
    noise_config: NoiseConfig
    defaults: ModelDefaults = SDXL_DEFAULTS
    can_be_refined: bool = True  # whether a refiner may continue its images
    aliases: tuple[str, ...] = ()  # paths and a hub name; never shown, since a path is private
    vocabulary: Vocabulary | None = None  # None: it takes any prompt
    sampler_warnings: tuple[str, ...] = ()  # for images by its default sampler
    weights: str = ""  # a digest of its files, which change under the same name
    cloud: CloudModel | None = None  # None: it runs here

    @property
    def sizes(self) -> SizeRules:
        """The image sizes that are legal with it."""
        return SizeRules(self.native_size)


@dataclass(frozen=True, slots=True)
class ExtensionInfo:
    """What a request must know about an extension of the base model."""

    kind: str  # such as "lora"
    name: str  # never a path
    models: tuple[str, ...]  # the base models that it fits
    default_weight: float = 1.0  # where the request names no weight
    weights: str = ""  # a digest of its file

    @property
    def key(self) -> ExtensionKey:
        """The key by which images name it, together with a weight."""
        return ExtensionKey(self.kind, self.name)


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What does not change while the service runs."""

    models: tuple[ModelInfo, ...]  # the default one first
    refiner: str | None  # the refiner's name, None without one
    device: str
    precision: str
    default_image_count: int  # images per request where the caller names no number
    warnings: tuple[str, ...] = ()  # that every response carries
    licenses: tuple[License, ...] = ()  # one per model and extension
    max_prompt_chars: int = 500  # the longest prompt on our own routes
    safety_filters: tuple[str, ...] = ()  # the safety filters that are on
    terms_required: bool = False  # whether callers must accept the licences first
    extensions: tuple[ExtensionInfo, ...] = ()
    max_extensions: int = 8  # of one image
    refiner_weights: str = ""  # a digest of the refiner's files
    refiner_aliases: tuple[str, ...] = ()  # as those of a model

    @property
    def default_model(self) -> ModelInfo:
        """The model of requests that name none."""
        return self.models[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of all models, the default one first."""
        return tuple(model.name for model in self.models)

    @property
    def local_models(self) -> tuple[ModelInfo, ...]:
        """The models that run here, of which there is at least one."""
        return tuple(model for model in self.models if model.cloud is None)

    @property
    def cloud_notice(self) -> str:
        """What callers must know of requests that leave this machine; "" if none does."""
        model = next((model for model in self.models if model.cloud is not None), None)
        if model is None or model.cloud is None:
            return ""
        sent = f"are sent to {model.cloud.provider}'s cloud, which makes the images"
        if model == self.default_model:
            return f"prompts and input images {sent} ({model.cloud.name})"
        return f"prompts and input images of requests for the model {model.name} {sent}"

    def find_model(self, name: str) -> ModelInfo | None:
        """Return the model of that name, or else the only one with that alias; None without one.

        Texts are compared, and no path is opened.
        """
        for model in self.models:
            if model.name == name:
                return model
        alias = _normal_path(name)
        known = [model for model in self.models if alias in model.aliases]
        return known[0] if len(known) == 1 else None

    def is_refiner(self, name: str) -> bool:
        """Return whether that is the refiner's name, or an alias that no model has."""
        if self.find_model(name) is not None or self.refiner is None:
            return False
        return name == self.refiner or _normal_path(name) in self.refiner_aliases

    def extensions_of(self, kind: str) -> tuple[ExtensionInfo, ...]:
        """Return the extensions of one kind."""
        return tuple(extension for extension in self.extensions if extension.kind == kind)

    def find_extension(self, kind: str, name: str) -> ExtensionInfo | None:
        """Return the extension of that kind and name; None if there is none."""
        return next((known for known in self.extensions_of(kind) if known.name == name), None)

    def can_refine(self, model: ModelInfo) -> bool:
        """Return whether there is a refiner that may continue a model's images."""
        return self.refiner is not None and model.can_be_refined

    @property
    def terms_digest(self) -> str:
        """A digest of all the licences, which callers accept by it."""
        return sha256(repr(self.licenses).encode()).hexdigest()[:16]


class HealthStatus(StrEnum):
    """Whether an image could be made now."""

    READY = "ready"
    DEGRADED = "degraded"  # images are made, and something else does not work
    LOADING = "loading"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Health:
    """What changes: replicas ready per stage, and the backlog in GPU seconds."""

    status: HealthStatus
    reason: str  # "" when ready, else one sentence
    replicas: dict[str, int]  # by stage
    owed_seconds: float
    shortfalls: tuple[str, ...] = ()  # what the devices of replicas lack memory for
    notices: tuple[str, ...] = ()  # what else the operator should know

    def with_ledger(self, ledger: "LedgerHealth") -> "Health":
        """Return the health of the service with its ledger's: without it, images are still made."""
        notices = (*self.notices, ledger.notice) if ledger.notice else self.notices
        if self.status is HealthStatus.LOADING:
            reason = "; ".join([self.reason, *map(str, ledger.warm_ups)])
            return replace(self, reason=reason, notices=notices)
        if not ledger.problem or self.status not in (HealthStatus.READY, HealthStatus.DEGRADED):
            return replace(self, notices=notices)
        reason = "; ".join(filter(None, (self.reason, ledger.problem)))
        return replace(self, status=HealthStatus.DEGRADED, reason=reason, notices=notices)


@dataclass(frozen=True, slots=True)
class LedgerHealth:
    """What is wrong with the ledger, and what the operator should know about it."""

    problem: str = ""  # a clause; "" while it works
    notice: str = ""  # a clause, as that its file was begun anew
    warm_ups: tuple[WarmUp, ...] = ()  # of replicas that start, as they told the ledger


def _normal_path(text: str) -> str:
    """Return a path without doubled or trailing slashes and without `./`; "" for a longer text."""
    return str(PurePosixPath(text)) if 0 < len(text) <= _MAX_PATH_CHARS else ""
