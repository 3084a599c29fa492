"""`Watches`: lets the replicas know which images somebody watches."""

import asyncio
from collections.abc import Mapping
from contextvars import Context

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.backlog import ImageInFlight
from serve_app.deployments.stage_client import StageClient


class Watches:
    """What the replicas were told of images that they have: nobody waits for their answers."""

    def __init__(self, stages: Mapping[Stage, StageClient]) -> None:
        self._stages = stages
        self._calls: set[asyncio.Task[None]] = set()

    def set(self, image: ImageInFlight, *, watched: bool) -> None:
        """Let an image be watched from now on, or no longer."""
        if image.watched is not watched:
            image.watched = watched
            if image.replica:  # else whoever sends it, or hears that it was accepted, passes it on
                self.pass_on(image)

    def pass_on(self, image: ImageInFlight) -> None:
        """Let the replica that has an image know whether it is watched."""
        client = self._stages[image.sample.stage]
        call = client.watch(image.sample.id, watched=image.watched)
        task = asyncio.create_task(call, context=Context())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
