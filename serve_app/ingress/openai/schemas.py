"""The JSON of the OpenAI routes: OpenAI's names and shapes, with extra fields for diffusion.

Null means the same as absent, and unknown fields are ignored, as clients of that API expect. The
extra fields have the names that other open image servers use.
"""

import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve_app.core.service.info import ModelInfo
from serve_app.ingress.fields import Guidance, Prompt, Seed, Steps, Strength
from serve_app.ingress.generation import (
    DEFAULT_STRENGTH,
    GenerationRequest,
    RefinementRequest,
)
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
OPENAI_MAX_PROMPT_CHARS = 4000
MAX_IMAGES = 10
WIRE_NAMES = {  # the domain's fields whose names differ on the wire
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "image_count": "n",
    "width": "size",
    "height": "size",
}
IGNORED_FIELDS = frozenset(  # OpenAI's own fields that change no image here
    {"input_fidelity", "moderation", "partial_images", "safety_identifier", "style", "user"}
)
_LOW_STEPS, _HIGH_STEPS = 15, 50  # between them lies the model's default
_STEPS = {
    "low": _LOW_STEPS,
    "high": _HIGH_STEPS,
    "hd": _HIGH_STEPS,
    "xhigh": _HIGH_STEPS,
    "max": _HIGH_STEPS,
}
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
    """The fields that both routes take."""

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
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    seed: Seed | None = None
    negative_prompt: Annotated[str, Field(max_length=OPENAI_MAX_PROMPT_CHARS)] | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None

    @property
    def format(self) -> str:
        """The requested image format."""
        return self.output_format or "png"

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The requested width and height; None leaves them to the service."""
        if self.size is None or self.size == "auto":
            return None
        width, height = self.size.split("x")
        return int(width), int(height)

    def steps_for(self, model: ModelInfo) -> int | None:
        """Return the number of steps, also from `quality`; None is the model's default.

        A distilled model is made for a few steps, so `quality` means none of them to it.
        """
        guidance = model.defaults.guidance
        is_distilled = guidance is not None and guidance <= 1
        quality = None if is_distilled else _STEPS.get(self.quality or "auto")
        return self.num_inference_steps or quality


class ImageGenerationRequest(ImagesRequest):
    """POST /v1/images/generations."""

    def to_domain(self, model: ModelInfo) -> GenerationRequest:
        """Return the request in the domain's words."""
        width, height = model.sizes.scaled(*self.pixels) if self.pixels else (None, None)
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=self.steps_for(model),
            guidance=self.guidance_scale,
            image_count=self.n or 1,
            model=model.name,
            width=width,
            height=height,
        )


class ImageEditRequest(ImagesRequest):
    """The fields of POST /v1/images/edits, without the files."""

    strength: Strength = DEFAULT_STRENGTH

    def to_domain(self, model: ModelInfo) -> RefinementRequest:
        """Return the request in the domain's words."""
        return RefinementRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=self.steps_for(model),
            guidance=self.guidance_scale,
            image_count=self.n or 1,
            model=model.name,
            strength=self.strength,
            target_size=model.sizes.scaled(*self.pixels) if self.pixels else None,
        )


def rerun_format(route: str, body: ImagesRequest) -> RerunFormat:
    """Return how a request is written down to be sent again to its route."""
    return RerunFormat(route, partial(rerun_request, body))


def rerun_request(body: ImagesRequest, job: GenerationJob, image: JobImage) -> dict[str, Any]:
    """Return the fields of a request that makes one image of a job again."""
    spec, is_png = image.spec, body.format == "png"
    request = {
        "model": job.model,
        "prompt": image.prompt,
        "n": 1,
        "size": f"{spec.width}x{spec.height}",
        "seed": spec.seed,
        "negative_prompt": spec.negative_prompt,
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "strength": spec.strength,
        "output_format": None if is_png else body.format,
        "output_compression": None if is_png else body.output_compression,
    }
    return {name: value for name, value in request.items() if value is not None}
