"""The demo in this process, whose drawing a test can pause and whose jobs it can refuse."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.service.events import Preview, Progress, StageEvent
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_replica import StageReplica
from tests.support.api import VERSION, make_api
from tests.support.demo_api import demo_info
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage

_REPEAT_S = 1.0  # between two signs of life, as a replica gives them


class PausingStage(LocalStage):
    """A stage that can keep back what follows the first preview from a step on."""

    def __init__(self, replica: StageReplica) -> None:
        super().__init__(replica)
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._step = 0

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream the replica's events, with a pause if there is to be one."""
        async with aclosing(super().advance(sample, segment)) as events:
            async for event in events:
                yield event
                if isinstance(event, Preview) and event.index >= self._step:
                    while not await asyncio.to_thread(self._may_go_on.wait, _REPEAT_S):
                        yield Progress(event.index)

    @contextmanager
    def paused(self, step: int) -> Iterator[None]:
        """Let no image pass its first preview from `step` on, until the context ends."""
        self._step = step
        self._may_go_on.clear()
        try:
            yield
        finally:
            self._may_go_on.set()


class RefusingConductor(Conductor):
    """A conductor that refuses every job while it has a `refusal`."""

    def __init__(self, stage: LocalStage, models: Sequence[ModelInfo]) -> None:
        super().__init__(stage, stage, models)
        self.refusal: Exception | None = None

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        if self.refusal is not None:
            raise self.refusal
        return super().admit(tasks)


class PausedDrawing:
    """The API of the demo, with what a test changes about it."""

    def __init__(self, replica: StageReplica, version: str = VERSION) -> None:
        info = demo_info()
        self.stage = PausingStage(replica)
        self.conductor = RefusingConductor(self.stage, info.models)
        self._api = make_api(self.conductor, Ledger(None), info, version=version)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yield the address of the running API."""
        with serving(self._api) as address:
            yield address
