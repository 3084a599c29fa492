"""`Watches`: lets the replicas know which images somebody watches."""

import asyncio
from collections.abc import Mapping
from contextvars import Context
from functools import partial

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.backlog import ImageInFlight
from serve_app.deployments.stage_client import StageClient


class Watches:
    """What the replicas were told of images that they have: nobody waits for their answers."""

    def __init__(self, stages: Mapping[Stage, StageClient]) -> None:
        self._stages = stages
        self._calls: dict[str, asyncio.Task[None]] = {}  # by the id of the image

    def set(self, image: ImageInFlight, *, watched: bool) -> None:
        """Let an image be watched from now on, or no longer."""
        if image.watched is not watched:
            image.watched = watched
            if image.replica:  # else whoever sends it, or hears that it was accepted, passes it on
                self.pass_on(image)

    def pass_on(self, image: ImageInFlight) -> None:
        """Let the replica that has an image know whether it is watched, as it is by then."""
        id = image.sample.id
        last = self._calls.get(id)
        if last is None or last.done():
            task = asyncio.create_task(self._send(image), context=Context())
            self._calls[id] = task
            task.add_done_callback(partial(self._forget, id))

    def _forget(self, id: str, task: asyncio.Task[None]) -> None:
        if self._calls[id] is task:
            del self._calls[id]

    async def _send(self, image: ImageInFlight) -> None:
        """Send what is so now until it has not changed meanwhile: calls may overtake each other."""
        sent: bool | None = None
        while sent is not image.watched:
            sent = image.watched
            client = self._stages[image.sample.stage]
            await client.watch(image.sample.id, watched=sent)
