"""What travels as JSON on our own routes.

Knows no routes, no pixels and no checkpoint: what depends on one is checked in `orders.py`.
Names are camelCase on the wire; an unknown field is an error that names it, and a value outside
its range is told with the range.
"""

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.sizes import ASPECTS
from serve_app.core.diffusion.spec import GUIDANCE_RANGE, LORA_WEIGHT_RANGE, SEED_RANGE, STEPS_RANGE
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.jobs import JobState

IMAGES = (1, 8)
N = TypeVar("N", int, float)
T = TypeVar("T")


def _between(low: float, high: float, *, open_low: bool = False) -> AfterValidator:
    def check(value: N) -> N:
        if not low <= value <= high or (open_low and value == low):
            raise PydanticCustomError(
                "range",
                "must be {how} {low} and {high}, got {value}",
                {
                    "how": "above" if open_low else "between",
                    "low": f"{low:.10g}",
                    "high": f"at most {high:.10g}" if open_low else f"{high:.10g}",
                    "value": repr(value).removesuffix(".0"),
                },
            )
        return value

    return AfterValidator(check)


def _sampler(value: Any) -> Any:
    if value not in list(Sampler):
        raise PydanticCustomError("choice", "must be one of {names}", {"names": ", ".join(Sampler)})
    return Sampler(value)


def _aspect(value: str) -> str:
    if value not in ASPECTS:
        raise PydanticCustomError("choice", "must be one of {names}", {"names": ", ".join(ASPECTS)})
    return value


Prompt = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    Field(json_schema_extra={"pattern": r"\S"}),
]
Steps = Annotated[
    int, _between(*STEPS_RANGE), Field(json_schema_extra={"minimum": 1, "maximum": 150})
]
Guidance = Annotated[
    float, _between(*GUIDANCE_RANGE), Field(json_schema_extra={"minimum": 0, "maximum": 20})
]
Seed = Annotated[
    int, _between(*SEED_RANGE), Field(json_schema_extra={"minimum": 0, "maximum": SEED_RANGE[1]})
]
Fraction = Annotated[float, _between(0, 1), Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Count = Annotated[int, _between(*IMAGES), Field(json_schema_extra={"minimum": 1, "maximum": 8})]
Strength = Annotated[
    float,
    _between(0, 1, open_low=True),
    Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1}),
]
Timeout = Annotated[
    float,
    _between(0, 3600, open_low=True),
    Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 3600}),
]
SamplerName = Annotated[Sampler, BeforeValidator(_sampler)]
LoraWeight = Annotated[
    float, _between(*LORA_WEIGHT_RANGE), Field(json_schema_extra={"minimum": -2, "maximum": 2})
]


class ApiModel(BaseModel):
    """A body of this API: camelCase, strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


class LoraField(ApiModel):
    """A LoRA by its name in the registry, and how strongly it counts."""

    name: str
    weight: Annotated[LoraWeight | None, Field(description="as the operator set it, else 1")] = None


class CommonFields(ApiModel):
    """The fields that both routes share."""

    negative_prompt: str | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    sampler: SamplerName | None = None
    image_count: Count | None = None
    handoff: Fraction = 0.8
    model: str | None = None
    loras: Annotated[list[LoraField], Field(max_length=8)] = []
    timeout_seconds: Timeout | None = None


class GenerateRequest(CommonFields):
    """POST /generate."""

    prompt: Prompt
    aspect_ratio: Annotated[
        str, AfterValidator(_aspect), Field(json_schema_extra={"enum": list(ASPECTS)})
    ] = "Auto"
    temperature: Annotated[
        float, _between(0, 2), Field(json_schema_extra={"minimum": 0, "maximum": 2})
    ] = 0.8
    width: int | None = None
    height: int | None = None
    refine: bool | None = None


class RefineConfig(ApiModel):
    """The nested form of /refine's settings. `modelPath` is a name, never a path."""

    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    model_path: str | None = None


class RefineRequest(CommonFields):
    """POST /refine: base images under either name, the prompt under either name."""

    base_images: Annotated[list[str], Field(min_length=1, max_length=8)] | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=8)] | None = None
    refine_prompt: Prompt | None = None
    prompt: Prompt | None = None
    config: RefineConfig | None = None
    strength: Strength = 0.6

    @property
    def pictures(self) -> tuple[str, list[str]]:
        """The base images, and the name they came under. Raises `InvalidRequest`."""
        return _one_of(("baseImages", self.base_images), ("images", self.images))

    @property
    def words(self) -> tuple[str, str]:
        """The prompt, and the name it came under. Raises `InvalidRequest`."""
        return _one_of(("refinePrompt", self.refine_prompt), ("prompt", self.prompt))


class Meta(ApiModel):
    """What the pictures were made with."""

    model: str
    duration_ms: int
    seeds: list[int]
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: Sampler
    refined: bool
    job_id: str
    warnings: list[str]


class JobError(ApiModel):
    """How a job failed."""

    code: str
    message: str


class GenerateResponse(ApiModel):
    """Pictures as bare base64 PNG, and what they were made with."""

    images: list[str]
    meta: Meta


class JobResponse(ApiModel):
    """GET and DELETE /jobs/{id}: `answer` when it succeeded, `error` when it did not."""

    id: str
    state: JobState
    created_at: float
    answer: GenerateResponse | None
    error: JobError | None


class TermsAcceptance(ApiModel):
    """POST /licenses: that the caller accepts the terms whose digest it names."""

    accept: Literal[True]
    terms: str


class LicenseEntry(ApiModel):
    """The terms of one model."""

    model: str
    name: str
    url: str
    restrictions: list[str]
    text: str


class LicensesResponse(ApiModel):
    """GET /licenses: what must be accepted, as a whole, where `required` says so."""

    terms: str
    required: bool
    licenses: list[LicenseEntry]


class HealthResponse(ApiModel):
    """GET /health."""

    status: str
    reason: str
    model: str  # the one that is taken when nobody names any
    models: list[str]
    refiner: str | None
    loras: list[str]
    device: str
    precision: str
    replicas: dict[str, int]
    owed_seconds: float
    safety_filter: str  # the names of the filters that are on, or "off"
    terms_required: bool
    warnings: list[str]
    version: str


class FieldError(ApiModel):
    """One field that is wrong."""

    path: str
    message: str


class ErrorBody(ApiModel):
    """What went wrong."""

    code: str
    message: str
    details: list[FieldError]
    request_id: str


class ErrorEnvelope(ApiModel):
    """The shape of every error."""

    error: ErrorBody


def _one_of(first: tuple[str, T | None], second: tuple[str, T | None]) -> tuple[str, T]:
    """The one of two names for the same thing that was given."""
    if first[1] is not None and second[1] is not None:
        raise InvalidRequest(first[0], f"stands beside {second[0]}: say one and not both")
    for name, value in (first, second):
        if value is not None:
            return name, value
    raise InvalidRequest(first[0], f"is required, or {second[0]} in its place")


def near_field(model: type[BaseModel], unknown: str) -> str | None:
    """The field of a request that an unknown name was probably meant to be."""
    names = [to_camel(name) for name in model.model_fields]
    if len(unknown) > 2 * max(map(len, names)):
        return None
    near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.7)
    return near[0] if near else None
