"""What the tools answer: text and images for models and people, and the same for programs.

An image is a small JPEG, which a language model can look at, and a link to the whole PNG. What
programs read is in `_meta`: some clients show a model nothing but the structured content of a
result that has it, and others hold it against the tool's schema in errors too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pybase64
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import BaseModel, ConfigDict

from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.mcp.progress import progress_text
from serve_app.ingress.responses import converted

JOB, ERROR = "aura-serve/job", "aura-serve/error"  # keys of `_meta`
_SMALL_SIDES = {2: 512, 4: 384, 8: 256}  # pixels of the longer side, by the most images
_SMALL_QUALITY = 80
_JPEG, _PNG = "image/jpeg", "image/png"
_ENDS = {JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled"}
_INTERNAL = "INTERNAL"


class ModelOutput(BaseModel):
    """A model that draws, and what it is best at."""

    model_config = ConfigDict(frozen=True)

    name: str
    native_size: int
    steps: int | None
    sampler: str | None
    is_default: bool
    cloud: str | None
    license: str | None
    loras: list[str]


class ModelsOutput(BaseModel):
    """`list_models` answers this."""

    model_config = ConfigDict(frozen=True)

    models: list[ModelOutput]
    samplers: list[str]
    aspect_ratios: list[str]
    notices: list[str]


def running(id: str, progress: Sequence[tuple[int, Outlook]] = ()) -> CallToolResult:
    """Return the answer about a job that runs."""
    images = [
        {
            "number": number,
            "stage": outlook.stage,
            "step": outlook.step,
            "of": outlook.of,
            "position": outlook.position,
            "eta_seconds": None if outlook.eta is None else round(outlook.eta, 1),
        }
        for number, outlook in progress
    ]
    lines = [f"Job {id} is running; ask job_status for it."]
    lines += [f"Image {number}: {progress_text(outlook)}." for number, outlook in progress]
    job = {"job_id": id, "state": JobState.RUNNING, "progress": images}
    return _answer([_text("\n".join(lines))], {JOB: job})


def ended(job: Job) -> CallToolResult:
    """Return the answer about a job that ended without images."""
    error = job.error
    failure = {"code": error.code, "message": error.message} if error else None
    reason = f": {error.message}" if error else ""
    text = f"Job {job.id} {_ENDS.get(job.state, 'has no images any more')}{reason}."
    return _answer([_text(text)], {JOB: {"job_id": job.id, "state": job.state, "error": failure}})


def drawn(result: JobResult, links: Sequence[str], *, link_blocks: bool) -> CallToolResult:
    """Return the answer with a job's images. Call it off the event loop.

    `links` are the addresses of the PNG files, or none where they could not be signed; without
    `link_blocks` they stand in the text alone.
    """
    meta = json.loads(result.meta)
    id, count = meta["jobId"], len(result.pngs)
    seeds = meta["seeds"] or [None] * count
    urls: Sequence[str | None] = links or [None] * count
    warnings = list(meta["warnings"])
    if not links:
        warnings.append("there is no link to the PNG: the service could not keep it")
    images = [
        {"number": number, "seed": seed, "url": url}
        for number, (seed, url) in enumerate(zip(seeds, urls, strict=True))
    ]
    job = {
        "job_id": id,
        "state": JobState.SUCCEEDED,
        "images": images,
        **{name: meta[name] for name in ("model", "width", "height")},
        "warnings": warnings,
    }
    blocks: list[ContentBlock] = [_text(_summary(job))]
    side = next(side for most, side in _SMALL_SIDES.items() if count <= most)
    for number, (png, url) in enumerate(zip(result.pngs, urls, strict=True)):
        blocks.append(_small_image(png, side))
        if url is not None and link_blocks:
            blocks.append(_link(f"{id}-{number}.png", url, len(png)))
    return _answer(blocks, {JOB: job})


def listed(models: ModelsOutput) -> CallToolResult:
    """Return the answer with the models."""
    text = "\n".join(
        [
            *map(_model_text, models.models),
            f"Samplers: {', '.join(models.samplers)}",
            f"Aspect ratios: {', '.join(models.aspect_ratios)}",
            *models.notices,
        ]
    )
    return CallToolResult(content=[_text(text)], structured_content=models.model_dump(mode="json"))


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
    data = error["data"]
    if data["code"] == _INTERNAL:
        advice += f" The request id is {data['request_id']}."
    content = data | {
        "message": error["message"],
        "status": status,
        "retry_after_seconds": seconds,
        "is_final": is_final,
    }
    text = f"{data['code']}: {error['message']}.{advice}"
    return CallToolResult(content=[_text(text)], meta={ERROR: content}, is_error=True)


def _summary(job: Mapping[str, Any]) -> str:
    images = job["images"]
    size = f" of {job['width']}x{job['height']}" if job["width"] else ""
    noun = "image" if len(images) == 1 else "images"
    lines = [f"Job {job['job_id']}: {len(images)} {noun}{size} by {job['model']}."]
    for image in images:
        seed = "" if image["seed"] is None else f", seed {image['seed']}"
        place = "" if image["url"] is None else f", PNG (for ten minutes): {image['url']}"
        lines.append(f"Image {image['number']}{seed}{place}")
    lines += [f"Warning: {warning}" for warning in job["warnings"]]
    return "\n".join(lines)


def _model_text(model: ModelOutput) -> str:
    default = " (default)" if model.is_default else ""
    maker = f"{model.steps} steps by {model.sampler}" if model.cloud is None else model.cloud
    loras = f", LoRAs {', '.join(model.loras)}" if model.loras else ""
    return f"{model.name}{default}: {model.native_size} pixels, {maker}{loras}"


def _small_image(png: bytes, side: int) -> ImageContent:
    jpeg = converted(png, "jpeg", _SMALL_QUALITY, max_side=side)
    return ImageContent(data=pybase64.b64encode(jpeg).decode(), mime_type=_JPEG)


def _link(name: str, url: str, size: int) -> ResourceLink:
    description = "The whole image as PNG, for ten minutes"
    return ResourceLink(name=name, uri=url, description=description, mime_type=_PNG, size=size)


def _text(text: str) -> TextContent:
    return TextContent(text=text)


def _answer(blocks: list[ContentBlock], meta: dict[str, Any]) -> CallToolResult:
    return CallToolResult(content=blocks, meta=meta)
