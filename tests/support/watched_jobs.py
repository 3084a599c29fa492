"""Jobs of a `ScriptedConductor` that are watched through an API in this event loop."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.types import ASGIApp

from serve_app.core.service.events import ImageEvent
from serve_app.core.service.outlook import Outlook
from tests.support.asgi_stream import Exchange, exchange
from tests.support.fake_conductor import ScriptedConductor

BODY = {"prompt": "a fox", "imageCount": 1, "stream": True}


def stream(
    api: ASGIApp, body: dict[str, Any] = BODY, **headers: str
) -> AbstractAsyncContextManager[Exchange]:
    return exchange(api, "POST", "/generate", body, headers)


async def say_outlook(
    maker: ScriptedConductor, found: Outlook, event: ImageEvent, number: int = 0
) -> None:
    """Let an image of the only job have an outlook, and an event that makes it known."""
    (job,) = {task.id.rpartition("-")[0] for tasks in maker.admitted for task in tasks}
    maker.outlooks[f"{job}-{number}"] = found
    maker.say(event, number)


async def job_of(answer: Exchange, maker: ScriptedConductor) -> str:
    """Return the id of a job that has just begun."""
    await answer.started()
    await maker.begun.acquire()
    (tasks,) = maker.admitted
    return tasks[0].id.rpartition("-")[0]
