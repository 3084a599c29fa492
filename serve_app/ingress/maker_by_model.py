"""`MakerByModel`: two makers behind one contract, of which a task's model chooses.

The service's own replicas make all images but those of one model, which is another maker's.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.service.events import ImageEvent
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageSnapshot, ImageTask
from serve_app.ingress.contracts import Maker


class MakerByModel:
    """The local maker, and a cloud's for the images of its `model`.

    `is_default` says that requests without a model are the cloud's. A spec without one is local.
    """

    def __init__(self, local: Maker, cloud: Maker, model: str, *, is_default: bool) -> None:
        self._local = local
        self._cloud = cloud
        self._model = model
        self._is_default = is_default

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        """See `Maker`; the images of a job are of one model."""
        return self._of(tasks[0].spec).admit(tasks)

    def check_room(self, caller: Caller, spec: ImageSpec, deadline: float | None) -> None:
        """See `Maker`."""
        self._of(spec).check_room(caller, spec, deadline)

    def send_away(self, caller: Caller) -> int:
        """See `Maker`; the model is not known, so it is taken to be the default."""
        return (self._cloud if self._is_default else self._local).send_away(caller)

    def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        """See `Maker`."""
        return self._of(task.spec).run(task)

    def snapshot(self, id: str) -> ImageSnapshot | None:
        """See `Maker`."""
        return self._local.snapshot(id) or self._cloud.snapshot(id)

    def outlook(self, id: str) -> Outlook | None:
        """See `Maker`."""
        return self._local.outlook(id) or self._cloud.outlook(id)

    def watch(self, id: str, *, watched: bool) -> None:
        """See `Maker`; nothing happens to an image that a maker does not have."""
        self._local.watch(id, watched=watched)
        self._cloud.watch(id, watched=watched)

    async def health(self) -> Health:
        """Return the health of whichever makes the images of requests without a model.

        What is wrong with the other one makes it degraded.
        """
        local, cloud = await self._local.health(), await self._cloud.health()
        status, reason = local.status, local.reason
        if status is HealthStatus.LOADING and self._is_default:
            status = HealthStatus.DEGRADED
        if status is HealthStatus.READY and cloud.status is HealthStatus.DEGRADED:
            status = HealthStatus.DEGRADED
        if status is HealthStatus.DEGRADED:
            reason = "; ".join(filter(None, (reason, cloud.reason)))
        owed = max(local.owed_seconds, cloud.owed_seconds)
        return replace(local, status=status, reason=reason, owed_seconds=owed)

    def owed_seconds(self) -> float:
        """See `Maker`."""
        return max(self._local.owed_seconds(), self._cloud.owed_seconds())

    def load(self) -> Mapping[str, Any]:
        """See `Maker`; the cloud's maker has none."""
        return self._local.load()

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """See `Maker`."""
        self._local.update_others(loads)

    def _of(self, spec: ImageSpec) -> Maker:
        return self._cloud if spec.model == self._model else self._local
