"""A job as server-sent events: `queued`, `progress`, `preview`, `image`, `done` and `error`.

The format is WHATWG HTML's, section 9.2. Every event has the job's id, so that a client that loses
its connection can join again. The id of an event, which a browser sends back as `Last-Event-ID`,
lists the images that were sent: missed progress is not repeated.
"""

import json
import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, assert_never

from fastapi import Request
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
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.errors import respond_to_exception
from serve_app.ingress.preview_pace import PreviewPace
from serve_app.ingress.responses import RawJson, to_json
from serve_app.ingress.services import ApiServices
from serve_app.ingress.sse import EVENT_STREAM, PING_S, message, stream_response

MAX_PREVIEWS = 32  # of each image, evenly over its steps: what a client does not read is kept
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: stream_response(
        "Events as they happen, if `stream` is true or Accept prefers them: `queued`, `progress`, "
        "`preview`, `image`, and at last `done` or `error`",
        ("queued", "progress", "preview", "image", "done", "error"),
        "JSON: the `jobId`, and what the event is of.",
        "The images that were sent, for Last-Event-ID.",
    )
}
_SENT = re.compile(r"\d{1,2}(?:,\d{1,2})*")  # a `Last-Event-ID`


def event_stream(
    job: str,
    events: AsyncGenerator[JobEvent, None],
    request: Request,
    services: ApiServices,
    sent: Collection[int] = (),
) -> EventSourceResponse:
    """Return a job's events as a response; the images in `sent` are left out."""
    messages = _messages(job, events, request, services, sent)
    return EventSourceResponse(messages, ping=PING_S, media_type=EVENT_STREAM)


def images_sent(last_event_id: str | None) -> frozenset[int]:
    """Return the images that a client has, by the last event id that it got."""
    if last_event_id is None or not _SENT.fullmatch(last_event_id):
        return frozenset()
    return frozenset(map(int, last_event_id.split(",")))


class _Messages:
    """The messages of one stream, each with the numbers of the images that were sent by then."""

    def __init__(self, job: str, services: ApiServices, sent: Collection[int]) -> None:
        self._job = job
        self._services = services
        self._sent = set(sent)
        self._previews = PreviewPace(MAX_PREVIEWS)

    async def of(self, event: JobEvent) -> AsyncGenerator[bytes, None]:
        """Yield what is sent of an event."""
        match event:
            case JobStarted() | StageDone():
                pass
            case ImageProgress(number, outlook):
                self._previews.note(event)
                name = "queued" if outlook.position else "progress"
                yield self.message(name, {"image": number, **progress_of(outlook)})
            case ImagePreview(number, jpeg):
                if self._previews.take(number) is not None:
                    yield self.message("preview", {"image": number, "jpeg": jpeg})
            case ImageMade(number, png, seed):
                if number not in self._sent:
                    yield await self._image(number, png, seed)
            case JobDone(result):
                seeds = json.loads(result.meta)["seeds"] or [None] * len(result.pngs)
                for number, (png, seed) in enumerate(zip(result.pngs, seeds, strict=True)):
                    if number not in self._sent:
                        yield await self._image(number, png, seed)
                yield self.message("done", {"meta": RawJson(result.meta)})
            case _:
                assert_never(event)

    def message(self, event: str, data: Mapping[str, Any]) -> bytes:
        """Return an event, whose data is one line."""
        ids = ",".join(map(str, sorted(self._sent)))
        return message(event, to_json({"jobId": self._job, **data}), ids)

    async def _image(self, number: int, png: bytes, seed: int | None) -> bytes:
        """Return the message of an image: megabytes, so that it is made off the event loop."""
        self._sent.add(number)
        data = {"image": number, "seed": seed, "png": png}
        return await self._services.write(self.message, "image", data)


async def _messages(
    job: str,
    events: AsyncGenerator[JobEvent, None],
    request: Request,
    services: ApiServices,
    sent: Collection[int],
) -> AsyncGenerator[bytes, None]:
    """Yield what is sent of each event; an error becomes the last one."""
    messages = _Messages(job, services, sent)
    try:
        async with aclosing(events):
            async for event in events:
                async with aclosing(messages.of(event)) as own:
                    async for sent_message in own:
                        yield sent_message
    except Exception as error:
        owed = services.conductor.owed_seconds()
        response = respond_to_exception(error, request.scope["state"], owed)
        yield messages.message("error", json.loads(bytes(response.body)))


def progress_of(outlook: Outlook) -> dict[str, Any]:
    """Return what is said of how far an image is: `ImageProgress` of the response schemas."""
    return {
        "stage": outlook.stage,
        "step": outlook.step,
        "of": outlook.of,
        "position": outlook.position,
        "owedSeconds": None if outlook.wait is None else round(outlook.wait, 3),
        "etaMs": None if outlook.eta is None else round(outlook.eta * 1000),
    }
