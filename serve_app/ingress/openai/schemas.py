"""The JSON of the OpenAI routes: OpenAI's names and shapes, with extra fields for diffusion.

Null means the same as absent, and unknown fields are ignored, as clients of that API expect. The
extra fields have the names that other open image servers use, and those of the native routes.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo
from serve_app.ingress.fields import (
    AspectRatio,
    Fraction,
    Guidance,
    GuidanceInterval,
    Prompt,
    Range,
    ResizeModeName,
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
from serve_app.ingress.http_errors import InvalidJson
from serve_app.ingress.image_links import ImageFormat
from serve_app.ingress.lookup import ExtensionChoice
from serve_app.ingress.responses import converted
from serve_app.ingress.stated_fields import stated_fields
from serve_app.ingress.strict_json import parse_json

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
OPENAI_MAX_PROMPT_CHARS = 4000
MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3  # of each image, as OpenAI allows
_DEFAULT_QUALITY = 90  # of JPEG and WebP
_MODELS_WITH_URLS = ("dall-e-2", "dall-e-3")  # whose images OpenAI links to by default
WIRE_NAMES = {  # the domain's fields whose names differ on the wire
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance_interval": "guidanceInterval",
    "image_count": "n",
    "width": "size",
    "height": "size",
}
_LOW_STEPS, _HIGH_STEPS = 15, 50  # between them lies the model's default
_STEPS = {
    "low": _LOW_STEPS,
    "high": _HIGH_STEPS,
    "hd": _HIGH_STEPS,
    "xhigh": _HIGH_STEPS,
    "max": _HIGH_STEPS,
}
_DIFFUSION_FIELDS = (
    *("seed", "num_inference_steps", "native_steps", "guidance_scale", "native_guidance"),
    *("guidance_interval", "sampler", "cache", "negative_prompt", "native_negative_prompt"),
    *("loras", "refine", "handoff", "temperature", "strength"),
)
T = TypeVar("T")
_SIZE = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}")


def _size(text: str) -> str:
    if text != "auto" and not _SIZE.fullmatch(text):
        raise PydanticCustomError("size", 'must be "auto" or WIDTHxHEIGHT, as in 1024x1024')
    return text


Size = Annotated[
    str,
    AfterValidator(_size),
    Field(json_schema_extra={"pattern": rf"^(auto|{_SIZE.pattern})$"}),
]
Quality = Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"]


NegativePrompt = Annotated[str, Field(max_length=OPENAI_MAX_PROMPT_CHARS)]


class LoraEntry(BaseModel):
    """A LoRA by its name in MODELS_FILE, and its weight."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    name: str
    weight: Weight | None = None


def _json_text(problem: str) -> BeforeValidator:
    """Return what reads a field of a form that holds JSON text, and else says what is wrong."""

    def parsed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_json(value.encode())
        except InvalidJson:
            raise PydanticCustomError("json_text", problem) from None

    return BeforeValidator(parsed)


Loras = Annotated[
    list[LoraEntry],
    _json_text('must be a list of LoRAs, as in [{"name": "ink"}]'),
    Field(max_length=8),
]
Interval = Annotated[
    GuidanceInterval, _json_text("must be a list of two noise levels, as in [0.28, 5.42]")
]


class ImagesRequest(BaseModel):
    """The fields that both routes take.

    Fields without a counterpart in OpenAI's API are sent in the `extra_body` of its clients. Three
    also have the name of the native routes.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    prompt: Prompt = Field(max_length=OPENAI_MAX_PROMPT_CHARS)
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Size | None = None
    quality: Quality | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    seed: Seed | None = None
    negative_prompt: NegativePrompt | None = None
    native_negative_prompt: Annotated[NegativePrompt | None, Field(alias="negativePrompt")] = None
    num_inference_steps: Steps | None = None
    native_steps: Annotated[Steps | None, Field(alias="steps")] = None
    guidance_scale: Guidance | None = None
    native_guidance: Annotated[Guidance | None, Field(alias="guidanceScale")] = None
    guidance_interval: Annotated[Interval | None, Field(alias="guidanceInterval")] = None
    cache: StepCacheName | None = None
    sampler: SamplerName | None = None
    refine: bool | None = None
    handoff: Fraction | None = DEFAULT_HANDOFF
    loras: Loras | None = []
    timeout: Annotated[Timeout | None, Field(alias="timeoutSeconds")] = None

    @property
    def identity(self) -> str:
        """The text of what the images are, whichever way the caller gets them."""
        same = self.model_copy(update={"stream": None})
        return same.model_dump_json(exclude={"partial_images", *(self.model_extra or ())})

    @property
    def format(self) -> ImageFormat:
        """The requested image format."""
        return self.output_format or "png"

    @property
    def wants_url(self) -> bool:
        """Whether the images should be links: asked for, or the default of the model named."""
        default = "url" if self.model in _MODELS_WITH_URLS and not self.stream else "b64_json"
        return (self.response_format or default) == "url"

    @property
    def quality_of_file(self) -> int:
        """The quality of JPEG and WebP, in percent."""
        return _DEFAULT_QUALITY if self.output_compression is None else self.output_compression

    def encoded(self, png: bytes) -> bytes:
        """Return an image's PNG in the requested format."""
        if self.format == "png":
            return png
        return converted(png, self.format, self.quality_of_file)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The requested width and height; None leaves them to the service."""
        if self.size is None or self.size == "auto":
            return None
        width, height = self.size.split("x")
        return int(width), int(height)

    def common_fields(self, model: ModelInfo) -> dict[str, Any]:
        """Return what both requests say in the domain's words. Raises `InvalidRequest`."""
        handoff = DEFAULT_HANDOFF if self.handoff is None else self.handoff
        loras = [ExtensionChoice(lora.name, lora.weight) for lora in self.loras or ()]
        return {
            "prompt": self.prompt,
            "negative_prompt": _either(
                "negative_prompt",
                self.negative_prompt,
                "negativePrompt",
                self.native_negative_prompt,
            ),
            "seed": self.seed,
            "steps": self.steps_for(model),
            "guidance": _either(
                "guidance_scale", self.guidance_scale, "guidanceScale", self.native_guidance
            ),
            "guidance_interval": as_interval(self.guidance_interval),
            "cache": self.cache,
            "sampler": self.sampler,
            "image_count": self.n or 1,
            "model": model.name,
            "refine": self.refine,
            "handoff": handoff,
            "extensions": tuple(loras),
            "timeout_s": self.timeout,
            "diffusion_fields": (
                *stated_fields(self, _DIFFUSION_FIELDS),
                *(["quality"] if self.quality in _STEPS else []),
            ),
        }

    def steps_for(self, model: ModelInfo) -> int | None:
        """Return the number of steps, also from `quality`; None is the model's default.

        A distilled model is made for a few steps, so `quality` means none of them to it. Raises
        `InvalidRequest`.
        """
        guidance = model.defaults.guidance
        is_distilled = guidance is not None and guidance <= 1
        quality = None if is_distilled else _STEPS.get(self.quality or "auto")
        steps = _either("num_inference_steps", self.num_inference_steps, "steps", self.native_steps)
        return steps or quality


class ImageGenerationRequest(ImagesRequest):
    """POST /v1/images/generations."""

    temperature: Annotated[float, Range(0, 2)] | None = DEFAULT_TEMPERATURE
    aspect: Annotated[AspectRatio | None, Field(alias="aspectRatio")] = "Auto"

    def to_domain(self, model: ModelInfo) -> GenerationRequest:
        """Return the request in the domain's words. Raises `InvalidRequest`."""
        width, height = model.sizes.scaled(*self.pixels) if self.pixels else (None, None)
        temperature = DEFAULT_TEMPERATURE if self.temperature is None else self.temperature
        return GenerationRequest(
            **self.common_fields(model),
            width=width,
            height=height,
            aspect=self.aspect or "Auto",
            temperature=temperature,
        )


class ImageEditRequest(ImagesRequest):
    """The fields of POST /v1/images/edits, without the files."""

    strength: Strength = DEFAULT_STRENGTH
    resize_mode: Annotated[ResizeModeName, Field(alias="resizeMode")] = ResizeMode.CROP

    def to_domain(self, model: ModelInfo) -> RefinementRequest:
        """Return the request in the domain's words. Raises `InvalidRequest`."""
        return RefinementRequest(
            **self.common_fields(model),
            strength=self.strength,
            target_size=model.sizes.scaled(*self.pixels) if self.pixels else None,
            resize_mode=self.resize_mode,
        )


def _either(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    """Return the value that came under one of two names, or the same under both."""
    if value is not None and other is not None and value != other:
        raise InvalidRequest(name, f"differs from {other_name}", remedy="Send one of them")
    return other if value is None else value
