"""The JSON that the native routes take, and its translation into the values of `generation.py`.

Names are camelCase on the wire. An unknown field is an error that names it, and a value outside
its range is an error with the range.
"""

from typing import Annotated, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.errors import InvalidRequest, model_not_found
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.fields import (
    AspectRatio,
    Fraction,
    Guidance,
    GuidanceInterval,
    Prompt,
    Range,
    ResizeModeName,
    Resolution,
    SamplerName,
    Seed,
    StepCacheName,
    Steps,
    Strength,
    Timeout,
    Weight,
    as_interval,
)
from serve_app.ingress.generation import (
    DEFAULT_HANDOFF,
    DEFAULT_STRENGTH,
    DEFAULT_TEMPERATURE,
    GenerationRequest,
    RefinementRequest,
)
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.lookup import ExtensionChoice, find_model
from serve_app.ingress.stated_fields import stated_fields

MAX_IMAGES = 8
WIRE_NAMES = {  # the domain's fields whose names differ on the wire
    "negative_prompt": "negativePrompt",
    "guidance": "guidanceScale",
    "guidance_interval": "guidanceInterval",
    "image_count": "imageCount",
    "timeout_s": "timeoutSeconds",
    "aspect": "aspectRatio",
}
_DIFFUSION_FIELDS = (
    *("seed", "steps", "guidance_scale", "guidance_interval", "sampler", "cache"),
    *("negative_prompt", "loras", "refine", "handoff", "temperature", "resolution", "strength"),
)
N = TypeVar("N", int, float)
T = TypeVar("T")
ImageCount = Annotated[int, Range(1, MAX_IMAGES)]
Images = Annotated[list[InputFile], Field(min_length=1, max_length=MAX_IMAGES)]


class ApiModel(BaseModel):
    """A body of this API: camelCase, strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )
    file_fields: ClassVar[frozenset[str]] = frozenset()  # lists of `InputFile`, on the wire


class ExtensionField(ApiModel):
    """An extension by its name in MODELS_FILE, and its weight. Each kind has its own subclass."""

    kind: ClassVar[str]
    name: str
    weight: Weight | None = None


class LoraField(ExtensionField):
    """A LoRA by its name in MODELS_FILE, and its weight."""

    kind = LORA


class CommonFields(ApiModel):
    """The fields that /generate and /refine share."""

    negative_prompt: str | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    guidance_interval: GuidanceInterval | None = None
    cache: StepCacheName | None = None
    sampler: SamplerName | None = None
    image_count: ImageCount | None = None
    handoff: Fraction = DEFAULT_HANDOFF
    model: str | None = None
    loras: Annotated[list[LoraField], Field(max_length=8)] = []
    timeout_seconds: Timeout | None = None
    stream: bool = False
    webhook: str | None = None

    @property
    def identity(self) -> str:
        """The text of what the images are, whichever way the caller gets them."""
        return self.model_dump_json(exclude={"stream"})

    @property
    def input_files(self) -> list[InputFiles]:
        """The files of each image to be made, if the request has any. Raises `InvalidRequest`."""
        return []

    def extension_choices(self) -> tuple[ExtensionChoice, ...]:
        """Return the extensions in the domain's words."""
        return tuple(
            ExtensionChoice(entry.name, entry.weight, entry.kind, to_camel(field))
            for field in extension_fields(type(self))
            for entry in getattr(self, field)
        )


def extension_fields(request: type[CommonFields]) -> dict[str, type[ExtensionField]]:
    """Return the fields of type `list[ExtensionField]`, by a subclass, and that subclass."""
    fields: dict[str, type[ExtensionField]] = {}
    for name, field in request.model_fields.items():
        (entry,) = get_args(field.annotation) if get_origin(field.annotation) is list else (None,)
        if isinstance(entry, type) and issubclass(entry, ExtensionField):
            fields[name] = entry
    return fields


class NestedConfig(ApiModel):
    """The nested form of some settings. `modelPath` is a name, never a path."""

    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    model_path: str | None = None


class GenerateRequest(CommonFields):
    """POST /generate."""

    prompt: Prompt
    aspect_ratio: AspectRatio = "Auto"
    resolution: Resolution = "high"
    temperature: Annotated[float, Range(0, 2)] = DEFAULT_TEMPERATURE
    width: int | None = None
    height: int | None = None
    refine: bool | None = None
    config: NestedConfig | None = None

    def to_domain(self, info: ServiceInfo) -> GenerationRequest:
        """Return the request in the domain's words. Raises `InvalidRequest` or `ModelNotFound`."""
        config = self.config or NestedConfig()
        _check_length("negativePrompt", self.negative_prompt, info)
        model, refiner_only = _choose_model(self.model, config.model_path, info)
        if refiner_only:
            raise InvalidRequest("config.modelPath", "is the refiner, which continues other images")
        _check_length("prompt", self.prompt, info)
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=_agreed("steps", self.steps, config.steps),
            guidance=_agreed("guidanceScale", self.guidance_scale, config.guidance_scale),
            guidance_interval=as_interval(self.guidance_interval),
            cache=self.cache,
            sampler=self.sampler,
            image_count=self.image_count,
            handoff=self.handoff,
            model=model.name,
            extensions=self.extension_choices(),
            timeout_s=self.timeout_seconds,
            diffusion_fields=_diffusion_fields(self, config),
            aspect=self.aspect_ratio,
            resolution=self.resolution,
            width=self.width,
            height=self.height,
            temperature=self.temperature,
            refine=self.refine,
        )


class RefineRequest(CommonFields):
    """POST /refine: base images under either name, the prompt under either name."""

    file_fields = frozenset({"baseImages", "images"})
    base_images: Images | None = None
    images: Images | None = None
    refine_prompt: Prompt | None = None
    prompt: Prompt | None = None
    config: NestedConfig | None = None
    strength: Strength = DEFAULT_STRENGTH
    resize_mode: ResizeModeName = ResizeMode.CROP

    @property
    def input_files(self) -> list[InputFiles]:
        """The base images under either name. Raises `InvalidRequest`."""
        _, images = _only_one(("baseImages", self.base_images), ("images", self.images))
        return [InputFiles(image) for image in images]

    @property
    def named_prompt(self) -> tuple[str, str]:
        """The field that holds the prompt, and the prompt. Raises `InvalidRequest`."""
        return _only_one(("refinePrompt", self.refine_prompt), ("prompt", self.prompt))

    def to_domain(self, info: ServiceInfo) -> RefinementRequest:
        """Return the request in the domain's words, without its files.

        Raises `InvalidRequest` or `ModelNotFound`.
        """
        field, prompt = self.named_prompt
        config = self.config or NestedConfig()
        _check_length("negativePrompt", self.negative_prompt, info)
        model, refiner_only = _choose_model(self.model, config.model_path, info)
        _check_length(field, prompt, info)
        return RefinementRequest(
            prompt=prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=_agreed("steps", self.steps, config.steps),
            guidance=_agreed("guidanceScale", self.guidance_scale, config.guidance_scale),
            guidance_interval=as_interval(self.guidance_interval),
            cache=self.cache,
            sampler=self.sampler,
            image_count=self.image_count,
            handoff=self.handoff,
            model=model.name,
            extensions=self.extension_choices(),
            timeout_s=self.timeout_seconds,
            diffusion_fields=_diffusion_fields(self, config),
            strength=self.strength,
            resize_mode=self.resize_mode,
            refiner_only=refiner_only,
            joins_prompts=True,
        )


class TermsAcceptance(ApiModel):
    """POST /licenses: the caller accepts the terms with this digest."""

    accept: Literal[True]
    terms_digest: str | None = None
    terms: Annotated[
        str | None,
        Field(description="The old name of `termsDigest`.", json_schema_extra={"deprecated": True}),
    ] = None

    @property
    def digest(self) -> str:
        """The digest under either name. Raises `InvalidRequest`."""
        _, digest = _only_one(("termsDigest", self.terms_digest), ("terms", self.terms))
        return digest


def _diffusion_fields(body: CommonFields, config: NestedConfig) -> tuple[str, ...]:
    """Return what a body says of diffusion, with what its nested form says."""
    nested = stated_fields(config, _DIFFUSION_FIELDS, "config.")
    return (*stated_fields(body, _DIFFUSION_FIELDS), *nested)


def _check_length(field: str, prompt: str | None, info: ServiceInfo) -> None:
    limit = info.max_prompt_chars
    if prompt is not None and len(prompt) > limit:
        raise InvalidRequest(field, f"must have at most {limit} characters, got {len(prompt)}")


def _choose_model(
    name: str | None, model_path: str | None, info: ServiceInfo
) -> tuple[ModelInfo, bool]:
    """Return the base model, and whether `config.modelPath` chooses the refiner alone."""
    model = find_model(info, name)
    field = "config.modelPath"
    if model_path is None:
        return model, False
    if info.is_refiner(model_path):
        if not model.can_be_refined:
            raise InvalidRequest(
                field, f"is the refiner, which does not continue images of {model.name}"
            )
        return model, True
    nested = info.find_model(model_path)
    if nested is None:
        refiner = (info.refiner,) if info.refiner else ()
        raise model_not_found(field, (*info.model_names, *refiner))
    if name is not None and nested != model:
        raise InvalidRequest(field, f"is {nested.name}, but model is {model.name}")
    return nested, False


def _agreed(name: str, top: N | None, nested: N | None) -> N | None:
    """Return a value that may stand at the top, in `config`, or the same in both."""
    if top is not None and nested is not None and top != nested:
        raise InvalidRequest(f"config.{name}", f"is {nested:g}, but {name} is {top:g}")
    return nested if top is None else top


def _only_one(first: tuple[str, T | None], second: tuple[str, T | None]) -> tuple[str, T]:
    """Return the name and value of the one field of two that was sent."""
    if first[1] is not None and second[1] is not None:
        raise InvalidRequest(first[0], f"cannot be combined with {second[0]}")
    for name, value in (first, second):
        if value is not None:
            return name, value
    raise InvalidRequest(first[0], f"is required, or {second[0]} instead")
