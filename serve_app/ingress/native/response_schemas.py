"""The JSON that the native routes return."""

from typing import Annotated

from pydantic import Field

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.jobs import JobState
from serve_app.ingress.native.schemas import ApiModel


class Meta(ApiModel):
    """What the images were made with."""

    model: str
    """Name of the model that the request chose."""
    duration_ms: int
    """Milliseconds from the acceptance of the job to its last image."""
    seeds: list[int] | None
    """Seed of each image, in the order of the images; null for a cloud's model, as are steps,
    guidanceScale and sampler, since it takes none."""
    width: int
    """Width of the first image in pixels."""
    height: int
    """Height of the first image in pixels."""
    steps: int | None
    """Number of denoising steps of the whole schedule."""
    guidance_scale: float | None
    """Classifier-free guidance scale."""
    sampler: Sampler | None
    """Sampler, with the spacing of its noise levels."""
    refined: bool
    """Whether the refiner took part."""
    job_id: str
    """Id of the job, for GET /jobs/{id}."""
    warnings: list[str]
    """What the caller should know, such as options that were ignored; also in X-Aura-Warning."""


class GenerateResponse(ApiModel):
    """Images as bare base64 PNG, and what they were made with."""

    images: list[str]
    """PNG files in base64, without a data-URI prefix; each carries the request that makes it."""
    meta: Meta
    """Model, settings, seeds and times of the images."""


class JobError(ApiModel):
    """Why a job failed."""

    code: str
    """Stable name of the error, as in error responses."""
    message: str
    """What went wrong, as a sentence."""
    final: bool
    """Whether the error's response has x-should-retry: false: sending it again can't help."""


class ImageProgress(ApiModel):
    """How far one image of a job is."""

    image: int
    """Number of the image, from 0."""
    stage: Stage
    """Stage at which it is: `base` or `refiner`."""
    step: int
    """Steps that it has taken."""
    of: int
    """Steps that it takes in all."""
    position: int
    """Its place among the images that wait, from 1; 0 once it has begun."""
    owed_seconds: float | None
    """Predicted seconds until it begins; null while no step has been measured."""
    eta_ms: int | None
    """Predicted milliseconds until it is done; null likewise."""


class JobSummary(ApiModel):
    """A job, without its images."""

    id: str
    """Id of the job."""
    state: JobState
    """Whether the job is worked at, or how it ended."""
    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the job was accepted, in UTC (RFC 3339)."""
    error: JobError | None
    """Why the job failed; null unless it did."""


class JobsResponse(ApiModel):
    """GET /jobs: a page of the caller's jobs, newest first."""

    jobs: list[JobSummary]
    """The jobs of the last minutes."""
    next: str | None
    """What the next page's `before` is; null on the last page."""


class JobResponse(JobSummary):
    """GET and DELETE /jobs/{id}: `result` if it succeeded, `error` if it failed."""

    progress: list[ImageProgress] | None
    """How far its images are that are not done; null unless it is running."""
    result: GenerateResponse | None
    """What the job made, for ten minutes after it succeeded; else null."""


class LicenseEntry(ApiModel):
    """The terms of one model."""

    model: str
    """Name of the model or LoRA."""
    name: str
    """Name of the licence."""
    url: str
    """Address of the licence; empty where the model names none."""
    restrictions: list[str]
    """Summary of the use restrictions; only the text is binding."""
    text: str
    """Whole text of the licence; empty where the model has none."""


class LicensesResponse(ApiModel):
    """GET /licenses: the terms, which callers must accept together where `required` is true."""

    terms_digest: str
    """Digest of all the terms, which POST /licenses accepts."""
    required: bool
    """Whether callers must accept the terms before their first image."""
    licenses: list[LicenseEntry]
    """Terms of each model and LoRA."""


class Optimizations(ApiModel):
    """How the default model draws."""

    scheduler: str
    """The sampler of requests that name none."""


class HealthResponse(ApiModel):
    """GET /health."""

    status: str
    """`ready`, `degraded` (images are made, and something else does not work), `loading` or
    `draining`; the response has status 200 for the first two, else 503."""
    reason: str
    """Why the service is not ready, or what does not work; empty when it is ready."""
    model: str
    """Name of the default model."""
    models: list[str]
    """Names of all base models, the default first."""
    cloud_models: list[str]
    """Names of the models whose prompts and input images are sent to a cloud."""
    refiner: str | None
    """Name of the refiner; null without one."""
    loras: list[str]
    """Names of the LoRAs."""
    device: str
    """Kind of device: `cpu`, `cuda` or `mps`; `cloud` where the default model is a cloud's."""
    precision: str
    """Precision of the weights: `fp32`, `fp16` or `bf16`."""
    optimizations: Optimizations
    """What the default model draws with."""
    replicas: dict[str, int]
    """Number of ready replicas by stage."""
    owed_seconds: float
    """Predicted seconds of the work that is accepted and not done."""
    safety_filters: list[str]
    """Names of the safety filters that are on."""
    terms_required: bool
    """Whether callers must accept the terms first; see GET /licenses."""
    warnings: list[str]
    """What the operator should know, such as replicas that lack memory."""
    version: str
    """Version of the service."""


class FieldError(ApiModel):
    """One field that is wrong."""

    path: str
    """Path of the field, as in `loras.0.weight`."""
    message: str
    """What is wrong with it."""


class ErrorBody(ApiModel):
    """What went wrong."""

    code: str
    """Stable name of the error, for programs."""
    message: str
    """What went wrong and what to do, for people."""
    details: list[FieldError]
    """Every field that is wrong, at most 20."""
    request_id: str
    """Id of the request, as in X-Request-Id and in the service's log."""


class ErrorEnvelope(ApiModel):
    """The shape of every error."""

    error: ErrorBody
    """What went wrong, why, and with which fields."""
