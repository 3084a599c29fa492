"""The JSON that the native routes return."""

from typing import Annotated

from pydantic import Field

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.jobs import JobState
from serve_app.ingress.native.schemas import ApiModel


class Meta(ApiModel):
    """What the images were made with."""

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


class GenerateResponse(ApiModel):
    """Images as bare base64 PNG, and what they were made with."""

    images: list[str]
    meta: Meta


class JobError(ApiModel):
    """Why a job failed."""

    code: str
    message: str


class JobResponse(ApiModel):
    """GET and DELETE /jobs/{id}: `result` if it succeeded, `error` if it failed."""

    id: str
    state: JobState
    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    error: JobError | None
    result: GenerateResponse | None


class LicenseEntry(ApiModel):
    """The terms of one model."""

    model: str
    name: str
    url: str
    restrictions: list[str]
    text: str


class LicensesResponse(ApiModel):
    """GET /licenses: the terms, which callers must accept together where `required` is true."""

    terms_digest: str
    required: bool
    licenses: list[LicenseEntry]


class HealthResponse(ApiModel):
    """GET /health."""

    status: str
    reason: str
    model: str  # the default model
    models: list[str]
    refiner: str | None
    loras: list[str]
    device: str
    precision: str
    replicas: dict[str, int]
    owed_seconds: float
    safety_filters: list[str]  # the names of the filters that are on
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
