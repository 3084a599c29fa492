"""What the tools answer: structured content for programs, and blocks that people and models see.

An image is a small JPEG, which a language model can look at, and a link to the whole PNG.
"""

import json
from collections.abc import Sequence
from typing import Any

import pybase64
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import BaseModel, ConfigDict

from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.responses import converted

SMALL_SIDE = 512  # pixels, of the longer side
_SMALL_QUALITY = 80
_JPEG, _PNG = "image/jpeg", "image/png"


class _Output(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageOutput(_Output):
    """An image: its number from 0, its seed if it has one, and a link to its PNG."""

    number: int
    seed: int | None
    width: int | None
    height: int | None
    url: str | None


class ProgressOutput(_Output):
    """How far an image is; until it begins it waits behind `position` - 1 others."""

    number: int
    stage: str
    step: int
    of: int
    position: int
    eta_seconds: float | None


class FailureOutput(_Output):
    """Why a job failed."""

    code: str
    message: str


class JobOutput(_Output):
    """A job: `generate`, `refine`, `job_status` and `cancel_job` answer it."""

    job_id: str
    state: JobState
    images: list[ImageOutput] = []
    model: str | None = None
    warnings: list[str] = []
    progress: list[ProgressOutput] = []
    error: FailureOutput | None = None


class ModelOutput(_Output):
    """A model that draws, and what it is best at."""

    name: str
    native_size: int
    steps: int | None
    sampler: str | None
    is_default: bool
    cloud: str | None
    license: str | None
    loras: list[str]


class ModelsOutput(_Output):
    """`list_models` answers this."""

    models: list[ModelOutput]
    samplers: list[str]
    aspect_ratios: list[str]
    notices: list[str]


def running(id: str, progress: Sequence[tuple[int, Outlook]] = ()) -> CallToolResult:
    """Return the answer about a job that runs."""
    states = [
        ProgressOutput(
            number=number,
            stage=outlook.stage,
            step=outlook.step,
            of=outlook.of,
            position=outlook.position,
            eta_seconds=None if outlook.eta is None else round(outlook.eta, 1),
        )
        for number, outlook in progress
    ]
    lines = [f"Job {id} is running; ask job_status for it."]
    lines += [f"Image {number}: {progress_text(outlook)}." for number, outlook in progress]
    output = JobOutput(job_id=id, state=JobState.RUNNING, progress=states)
    return _answer(output, [_text("\n".join(lines))])


def ended(job: Job) -> CallToolResult:
    """Return the answer about a job that ended without images."""
    error = job.error
    failure = FailureOutput(code=error.code, message=error.message) if error else None
    reason = f": {error.message}" if error else ""
    output = JobOutput(job_id=job.id, state=job.state, error=failure)
    return _answer(output, [_text(f"Job {job.id} is {job.state}{reason}.")])


def drawn(result: JobResult, links: Sequence[str]) -> CallToolResult:
    """Return the answer with a job's images. Call it off the event loop.

    `links` are the addresses of the PNG files, or none where they could not be signed.
    """
    meta = json.loads(result.meta)
    seeds = meta["seeds"] or [None] * len(result.pngs)
    urls: Sequence[str | None] = links or [None] * len(result.pngs)
    warnings = list(meta["warnings"])
    if not links:
        warnings.append("there is no link to the PNG: the service could not keep it")
    id = meta["jobId"]
    output = JobOutput(
        job_id=id,
        state=JobState.SUCCEEDED,
        images=[
            ImageOutput(
                number=number, seed=seed, width=meta["width"], height=meta["height"], url=url
            )
            for number, (seed, url) in enumerate(zip(seeds, urls, strict=True))
        ],
        model=meta["model"],
        warnings=warnings,
    )
    blocks: list[ContentBlock] = [_text(_summary(output))]
    for number, (png, url) in enumerate(zip(result.pngs, urls, strict=True)):
        blocks.append(_small_image(png))
        if url is not None:
            blocks.append(_link(f"{id}-{number}.png", url, len(png)))
    return _answer(output, blocks)


def listed(models: ModelsOutput) -> CallToolResult:
    """Return the answer with the models."""
    lines = [*map(_model_text, models.models), *models.notices]
    return _answer(models, [_text("\n".join(lines))])


def refused(
    error: dict[str, Any], status: int, retry_after: str | None, *, is_final: bool
) -> CallToolResult:
    """Return the answer to a call that failed, by the error of the door's own shape.

    `status` is what other routes answer in this case. A call that is `is_final` fails again.
    """
    seconds = int(retry_after) if retry_after else None
    advice = " Do not try it again unchanged." if is_final else ""
    if seconds is not None:
        advice = f" Try again in {seconds} seconds."
    content = {
        "error": error["data"]
        | {
            "message": error["message"],
            "status": status,
            "retry_after_seconds": seconds,
            "is_final": is_final,
        }
    }
    text = f"{error['data']['code']}: {error['message']}.{advice}"
    return CallToolResult(content=[_text(text)], structured_content=content, is_error=True)


def progress_text(outlook: Outlook) -> str:
    """Return how far an image is, in words."""
    if outlook.position:
        taken = f"step {outlook.step} of {outlook.of}, " if outlook.step else ""
        return f"{taken}waits for {outlook.stage} as number {outlook.position}"
    left = "" if outlook.eta is None else f", about {outlook.eta:.0f} s left"
    return f"step {outlook.step} of {outlook.of}{left}"


def _model_text(model: ModelOutput) -> str:
    default = " (default)" if model.is_default else ""
    maker = f"{model.steps} steps by {model.sampler}" if model.cloud is None else model.cloud
    loras = f", LoRAs {', '.join(model.loras)}" if model.loras else ""
    return f"{model.name}{default}: {model.native_size} pixels, {maker}{loras}"


def _summary(output: JobOutput) -> str:
    first = output.images[0]
    size = f" of {first.width}x{first.height}" if first.width and first.height else ""
    noun = "image" if len(output.images) == 1 else "images"
    lines = [f"Job {output.job_id}: {len(output.images)} {noun}{size} by {output.model}."]
    for image in output.images:
        seed = "" if image.seed is None else f", seed {image.seed}"
        place = "" if image.url is None else f", PNG (for ten minutes): {image.url}"
        lines.append(f"Image {image.number}{seed}{place}")
    lines += [f"Warning: {warning}" for warning in output.warnings]
    return "\n".join(lines)


def _small_image(png: bytes) -> ImageContent:
    jpeg = converted(png, "jpeg", _SMALL_QUALITY, max_side=SMALL_SIDE)
    return ImageContent(data=pybase64.b64encode(jpeg).decode(), mime_type=_JPEG)


def _link(name: str, url: str, size: int) -> ResourceLink:
    description = "The whole image as PNG, for ten minutes"
    return ResourceLink(name=name, uri=url, description=description, mime_type=_PNG, size=size)


def _text(text: str) -> TextContent:
    return TextContent(text=text)


def _answer(output: BaseModel, blocks: list[ContentBlock]) -> CallToolResult:
    return CallToolResult(content=blocks, structured_content=output.model_dump(mode="json"))
