"""What travels on the OpenAI routes: OpenAI's names and shapes, and the extra ones for diffusion.

Knows no routes. Null is as good as absent, and unknown names are passed over, as clients of that
API expect; the extra names are those that other open image servers use.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve_app.core.service.info import ModelInfo
from serve_app.ingress.native.schemas import Guidance, Prompt, Seed, Steps, Strength

MAX_PROMPT_CHARS = 4000
IMAGES = 10
LOW, HIGH = 15, 50  # steps of low and of high quality; between them the service's default
IGNORED_FIELDS = frozenset(  # of OpenAI's own: no picture here depends on them
    {"input_fidelity", "moderation", "partial_images", "safety_identifier", "style", "user"}
)
_STEPS = {"low": LOW, "high": HIGH, "hd": HIGH, "xhigh": HIGH, "max": HIGH}
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


class ImagesRequest(BaseModel):
    """What both routes take. Null is as good as absent; unknown names are passed over."""

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    prompt: Prompt = Field(max_length=MAX_PROMPT_CHARS)
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=IMAGES)] | None = None
    size: Size | None = None
    quality: Quality | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    seed: Seed | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None

    def native(self, model: ModelInfo) -> dict[str, Any]:
        """The same wishes by the names of our own routes. Quality means steps, but not to a model
        that is made for a few."""
        distilled = model.defaults.guidance is not None and model.defaults.guidance <= 1
        steps = None if distilled else _STEPS.get(self.quality or "auto")
        return {
            "model": model.name,
            "prompt": self.prompt,
            "negativePrompt": self.negative_prompt,
            "seed": self.seed,
            "steps": self.num_inference_steps or steps,
            "guidanceScale": self.guidance_scale,
        }

    @property
    def format(self) -> str:
        """The picture format asked for."""
        return self.output_format or "png"

    @property
    def wanted_size(self) -> tuple[int, int] | None:
        """Width and height in pixels; None when the service may choose."""
        if self.size is None or self.size == "auto":
            return None
        width, height = self.size.split("x")
        return int(width), int(height)


class ImageGenerationRequest(ImagesRequest):
    """POST /v1/images/generations."""


class ImageEditRequest(ImagesRequest):
    """The fields of POST /v1/images/edits, besides the pictures."""

    strength: Strength = 0.6


class ImageData(BaseModel):
    """One picture."""

    b64_json: str
    seed: int


class ImagesResponse(BaseModel):
    """The answer to both routes: OpenAI's, with seeds and warnings added."""

    created: int
    data: list[ImageData]
    size: str
    quality: str
    output_format: str
    background: str
    warnings: list[str]


class Model(BaseModel):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    license: str


class Models(BaseModel):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class OpenAIErrorBody(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorEnvelope(BaseModel):
    """The shape of every error on these routes."""

    error: OpenAIErrorBody
