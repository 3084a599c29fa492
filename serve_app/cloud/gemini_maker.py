"""`GeminiMaker`: a maker of images that has Google's Gemini make them.

No Ray and no HTTP server. What bounds it is the number of calls: nothing is known of the seconds
that they take but how long the last ones took.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import dataclass
from math import ceil
from typing import Any

from serve_app.cloud.call_slots import CallSlots
from serve_app.cloud.gemini_answer import png_of
from serve_app.cloud.gemini_client import CloudBusy, GeminiClient
from serve_app.cloud.gemini_options import MODEL_NAME, GeminiOptions
from serve_app.cloud.gemini_request import request_body
from serve_app.core.caller import Caller
from serve_app.core.capacity.open_requests import has_room
from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.cloud_errors import after_calls
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    AuraError,
    DeadlineExceeded,
    Draining,
    ModelUnavailable,
    Overloaded,
)
from serve_app.core.service.events import Generated, GeneratedImage, ImageEvent, Progress, Queued
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.service.metrics import (
    IMAGES,
    REQUESTS_ADMITTED,
    REQUESTS_REFUSED,
    ImageOutcome,
    Meter,
)
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageSnapshot, ImageTask
from serve_app.deployments.deadline import Deadline
from serve_app.deployments.image_metrics import recorded_image

logger = logging.getLogger("aura.cloud")

_WAITING_PER_CALL = 8  # images that may wait for each call that may be made at once
_MAX_PAUSE_S = 60.0  # without calls, however long the cloud wants none: it may be wrong
_ASSUMED_CALL_S = 10.0  # while none has been measured
_MEMORY = 0.8  # share of the mean that the calls before the last one have


@dataclass(slots=True)
class _OpenImage:
    """An image that was admitted, with its `job`, which are all images that were admitted with it.

    `begun` is when its call began, in the event loop's time.
    """

    caller: Caller
    job: list["_OpenImage"]
    begun: float | None = None
    png: bytes | None = None  # once it is made
    is_free: bool = False  # its call ended, and can't have cost anything

    @property
    def may_cost(self) -> bool:
        """Whether its call may have cost something, or is open and may yet."""
        return self.begun is not None and not self.is_free


class GeminiMaker:
    """The images that one process has Gemini make."""

    def __init__(self, options: GeminiOptions, meter: Meter) -> None:
        self._options = options
        self._meter = meter
        self._client = GeminiClient(options, meter)
        self._slots = CallSlots(options.max_calls)
        self._images: dict[str, _OpenImage] = {}  # by their ids, in the order of their admission
        self._call_seconds = _ASSUMED_CALL_S
        self._busy_until = self._paused_until = 0.0
        self._problem = ""  # that the operator must solve
        self.is_draining = False

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        """Admit the images of a job together. Raises `Draining` or `Overloaded`."""
        caller = tasks[0].caller
        try:
            self._check(caller, len(tasks))
        except AuraError:
            for _ in tasks:
                self._meter.record(IMAGES, outcome=ImageOutcome.REFUSED, model=MODEL_NAME)
            raise
        self._meter.record(REQUESTS_ADMITTED)
        context = ExitStack()
        job: list[_OpenImage] = []
        for task in tasks:
            self._images[task.id] = image = _OpenImage(task.caller, job)
            job.append(image)
            context.callback(self._images.pop, task.id, None)
        return context

    def check_room(self, caller: Caller, spec: ImageSpec, deadline: float | None) -> None:
        """Raise `Draining` or `Overloaded` for a job that is refused whatever it has."""
        self._check(caller, 1)

    def send_away(self, caller: Caller) -> int:
        """Return the seconds after which a refused request should be sent again."""
        return bounded_retry(self.owed_seconds())

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        """Make one image: stream its events, at last `Generated`. Closing it ends the call.

        A task that was not admitted before is admitted alone. Raises the named errors of
        `core.errors`.
        """
        with ExitStack() as contexts:
            if task.id not in self._images:
                contexts.enter_context(self.admit([task]))
            image = self._images[task.id]
            contexts.enter_context(recorded_image(self._meter, MODEL_NAME, lambda: 0.0))
            deadline = Deadline.of(task, self._default_timeout())
            try:
                async with aclosing(deadline.enforce(self._events(task, image))) as events:
                    async for event in events:
                        yield event
            except AuraError as failure:
                image.is_free = not (failure.is_final or isinstance(failure, DeadlineExceeded))
                if any(other.may_cost for other in image.job):
                    raise after_calls(failure) from None
                raise
        assert image.png is not None
        yield Generated(GeneratedImage(image.png, ()))

    def snapshot(self, id: str) -> ImageSnapshot | None:
        """Return None: a call can't be continued elsewhere."""
        return None

    def outlook(self, id: str) -> Outlook | None:
        """Return how far an image is: waiting for a call, or in one, which is its only step."""
        image = self._images.get(id)
        if image is None:
            return None
        if image.begun is not None:
            elapsed = asyncio.get_running_loop().time() - image.begun
            return Outlook(Stage.BASE, 0, 1, wait=0.0, eta=max(0.0, self._call_seconds - elapsed))
        waiting = [other for other, known in self._images.items() if known.begun is None]
        position = waiting.index(id) + 1
        wait = self._call_seconds * ceil(position / self._options.max_calls)
        return Outlook(Stage.BASE, 0, 1, position, wait, wait + self._call_seconds)

    def watch(self, id: str, *, watched: bool) -> None:
        """Do nothing: there are no previews."""

    async def health(self) -> Health:
        """Return whether the cloud made images when it was last asked. It costs no call."""
        status = HealthStatus.DEGRADED if self._problem else HealthStatus.READY
        if self.is_draining:
            status = HealthStatus.DRAINING
        return Health(status, self._problem, {}, self.owed_seconds())

    def owed_seconds(self) -> float:
        """Return the seconds until all images are made, by the last calls and what is open."""
        return self._call_seconds * ceil(len(self._images) / self._options.max_calls)

    def load(self) -> Mapping[str, Any]:
        """Return nothing: each process bounds its own calls."""
        return {}

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: see `load`."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _check(self, caller: Caller, count: int) -> None:
        """Raise what refuses `count` more images of a caller. One that is alone is admitted."""
        if self.is_draining:
            raise Draining("the service is shutting down and takes no new images")
        self._check_pause()
        taken: dict[Caller, float] = {}
        for image in self._images.values():
            taken[image.caller] = taken.get(image.caller, 0) + 1
        limit = self._options.max_calls * (1 + _WAITING_PER_CALL)
        if taken and not has_room(taken, caller, limit, count):
            self._meter.record(REQUESTS_REFUSED, reason="open_requests")
            raise Overloaded(
                "as many images wait for the cloud as may, in all or of one caller",
                retry_after=bounded_retry(self.owed_seconds()),
            )

    def _check_pause(self) -> None:
        """Raise `Overloaded` for a while after the cloud has refused a call."""
        now = asyncio.get_running_loop().time()
        if now < self._paused_until:
            raise _busy(bounded_retry(self._busy_until - now))

    async def _events(self, task: ImageTask, image: _OpenImage) -> AsyncGenerator[ImageEvent, None]:
        """Make an image, in its turn; stream the events before its end."""
        clock = asyncio.get_running_loop().time
        yield Queued()
        async with self._slots.taken(task.caller):
            self._check_pause()
            image.begun = clock()
            yield Progress(0)
            image.png = await self._make(task)
            took = clock() - image.begun
            self._call_seconds = _MEMORY * self._call_seconds + (1 - _MEMORY) * took

    async def _make(self, task: ImageTask) -> bytes:
        body = await asyncio.to_thread(request_body, task, self._options.image_size)
        try:
            answer = await self._client.generate(body)
        except CloudBusy as busy:
            seconds = busy.seconds or bounded_retry(self.owed_seconds())
            now = asyncio.get_running_loop().time()
            self._busy_until, self._paused_until = now + seconds, now + min(seconds, _MAX_PAUSE_S)
            raise _busy(seconds) from None
        except ModelUnavailable as error:
            if not self._problem:
                logger.error("Gemini makes no images: %s", error)
            self._problem = f"Gemini makes no images: {error.problem}"
            raise
        self._problem = ""
        return await asyncio.to_thread(png_of, answer)

    def _default_timeout(self) -> float:
        """Return the seconds that an image may take whose caller chose no timeout.

        Those of its own calls, and of those that go before it.
        """
        options = self._options
        rounds = 1 + options.retries + len(self._images) // options.max_calls
        return rounds * options.timeout_s


def _busy(seconds: int) -> Overloaded:
    return Overloaded("the cloud takes no more requests for now", retry_after=seconds)
