"""OpenAI's streaming: partial images while one is made, and each image when it is done.

The names and fields are those of OpenAI's Images API. A partial image is the newest preview at that
point, at the image's own size.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import BytesIO
from typing import Any, assert_never

from fastapi import Request
from PIL import Image
from sse_starlette import EventSourceResponse

from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobDone,
    JobEvent,
    JobStarted,
    StageDone,
)
from serve_app.ingress.containers.png import size_of
from serve_app.ingress.errors import respond_to_exception
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.openai.schemas import ImagesRequest
from serve_app.ingress.preview_pace import PreviewPace
from serve_app.ingress.responses import to_json
from serve_app.ingress.services import ApiServices
from serve_app.ingress.sse import EVENT_STREAM, PING_S, message, stream_response

GENERATION, EDIT = "image_generation", "image_edit"  # what the names of events begin with
_QUICK = {"png": {"compress_level": 1}}  # of a picture that is looked at for a moment
_NO_USAGE = {  # OpenAI counts tokens, which are none here
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def stream_responses(kind: str) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes the streams of one kind of images."""
    names = (f"{kind}.partial_image", f"{kind}.completed", "error")
    description = "With `stream`: OpenAI's events, as they happen"
    return {200: stream_response(description, names, "JSON: the event, as OpenAI has it.")}


def event_stream(
    kind: str,
    body: ImagesRequest,
    job: GenerationJob,
    events: AsyncGenerator[JobEvent, None],
    request: Request,
    services: ApiServices,
) -> EventSourceResponse:
    """Return the events of a job as OpenAI's clients read them."""
    messages = _messages(kind, body, job, events, request, services)
    return EventSourceResponse(messages, ping=PING_S, media_type=EVENT_STREAM)


async def _messages(
    kind: str,
    body: ImagesRequest,
    job: GenerationJob,
    events: AsyncGenerator[JobEvent, None],
    request: Request,
    services: ApiServices,
) -> AsyncGenerator[bytes, None]:
    partials = PreviewPace(body.partial_images or 0, skips_first=True)
    sent = set[int]()

    async def image(made: ImageMade) -> bytes:
        sent.add(made.number)
        return await services.write(_completed, kind, body, job, made)

    try:
        async with aclosing(events):
            async for event in events:
                match event:
                    case JobStarted() | StageDone():
                        pass
                    case ImageProgress():
                        partials.note(event)
                    case ImagePreview(number, jpeg):
                        if (index := partials.take(number)) is not None:
                            yield await services.write(
                                _partial, kind, body, job, number, index, jpeg
                            )
                    case ImageMade(number):
                        if number not in sent:
                            yield await image(event)
                    case JobDone(result):
                        meta = json.loads(result.meta)
                        for number, png in enumerate(result.pngs):
                            if number not in sent:
                                seed = meta["seeds"] and meta["seeds"][number]
                                made = ImageMade(number, png, seed, tuple(meta["warnings"]))
                                yield await image(made)
                    case _:
                        assert_never(event)
    except Exception as error:
        owed = services.conductor.owed_seconds()
        response = respond_to_exception(error, request.scope["state"], owed)
        yield message("error", to_json({"type": "error", **json.loads(bytes(response.body))}))


def _partial(
    kind: str, body: ImagesRequest, job: GenerationJob, number: int, index: int, jpeg: bytes
) -> bytes:
    """Return a preview at the size of its image, in the format that was asked for."""
    spec = job.images[number].spec
    file = BytesIO()
    with Image.open(BytesIO(jpeg)) as preview:
        large = preview.resize((spec.width, spec.height), Image.Resampling.BICUBIC)
    large.save(file, body.format.upper(), **_QUICK.get(body.format, {}))
    name = f"{kind}.partial_image"
    content = _common(name, body, job, number) | {"partial_image_index": index}
    return message(name, to_json({**content, "b64_json": file.getvalue()}))


def _completed(kind: str, body: ImagesRequest, job: GenerationJob, made: ImageMade) -> bytes:
    name = f"{kind}.completed"
    width, height = size_of(made.png)
    content = _common(name, body, job, made.number) | {
        "size": f"{width}x{height}",
        "usage": _NO_USAGE,
        "seed": made.seed,
        "warnings": list(made.warnings),
    }
    return message(name, to_json({**content, "b64_json": body.encoded(made.png)}))


def _common(name: str, body: ImagesRequest, job: GenerationJob, number: int) -> dict[str, Any]:
    spec = job.images[number].spec
    return {
        "type": name,
        "created_at": int(time.time()),
        "size": f"{spec.width}x{spec.height}",
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": body.format,
    }
