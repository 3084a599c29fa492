"""Makers that keep the contract without a model: what the routes are tested with."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from io import BytesIO
from math import ceil
from typing import Any

from PIL import Image

from serve_app.core.caller import Caller
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import Overloaded
from serve_app.core.service.events import Generated, GeneratedImage, ImageEvent
from serve_app.core.service.info import Health, HealthStatus, License, ModelInfo, ServiceInfo
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageSnapshot, ImageTask

PROFILES = ((Stage.BASE, "base-float32-4-0123abcd"), (Stage.REFINER, "refiner-float32-4-0123abcd"))
NOISE = NoiseConfig.from_scheduler_config({})
LICENSES = tuple(
    License(model, "CreativeML Open RAIL++-M", "https://example.org/license", ("harm",), "the text")
    for model in ("sdxl-base-1.0", "sdxl-refiner-1.0")
)

INFO = ServiceInfo(
    models=(ModelInfo("sdxl-base-1.0", 1024, NOISE),),
    refiner="sdxl-refiner-1.0",
    device="cpu",
    precision="fp32",
    default_image_count=2,
    licenses=LICENSES,
)


class FakeConductor:
    """A maker that paints every image in one colour at once, and remembers its tasks.

    Doubles that differ in how an image is made override `generate`.
    """

    def __init__(self) -> None:
        self.calls: list[ImageTask] = []
        self.current_health = Health(HealthStatus.READY, "", {"base": 1, "refiner": 1}, 0.0)
        self.owed = 12.3  # seconds
        self.warnings: tuple[str, ...] = ()  # of every image
        self.refusal: Exception | None = None  # of every job
        self.refused = 0  # jobs
        self.admitted: list[Sequence[ImageTask]] = []  # by job
        self.open_jobs = 0
        self.room_checks = 0
        self.sent_away: list[Caller] = []  # before their jobs were known
        self.outlooks: dict[str, Outlook] = {}  # by the id of an image
        self.watched: dict[str, bool] = {}  # by the id of an image: the last call of `watch`
        self.others: Sequence[Mapping[str, Any]] = ()  # what other processes have

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        if self.refusal is not None:
            self.refused += 1
            raise self.refusal
        self.admitted.append(tasks)
        self.open_jobs += 1
        context = ExitStack()
        context.callback(self._end_job)
        return context

    def check_room(self, caller: Caller, spec: ImageSpec, deadline: float | None) -> None:
        self.room_checks += 1
        if isinstance(self.refusal, Overloaded):
            raise self.refusal

    def send_away(self, caller: Caller) -> int:
        self.sent_away.append(caller)
        return ceil(self.owed)

    def _end_job(self) -> None:
        self.open_jobs -= 1

    def load(self) -> Mapping[str, Any]:
        return {"jobs": self.open_jobs}

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        self.others = loads

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        yield Generated(await self.generate(task))

    async def generate(self, task: ImageTask) -> GeneratedImage:
        self.calls.append(task)
        file = BytesIO()
        Image.new("RGB", (task.spec.width, task.spec.height), "teal").save(file, "PNG")
        return GeneratedImage(file.getvalue(), PROFILES, self.warnings)

    def snapshot(self, id: str) -> ImageSnapshot | None:
        return None

    def outlook(self, id: str) -> Outlook | None:
        return self.outlooks.get(id)

    def watch(self, id: str, *, watched: bool) -> None:
        self.watched[id] = watched

    async def health(self) -> Health:
        return self.current_health

    def owed_seconds(self) -> float:
        return self.owed

    @property
    def specs(self) -> list[ImageSpec]:
        return [task.spec for task in self.calls]


class InstantConductor(FakeConductor):
    """The same small image at once, whatever the task; remembers nothing."""

    def __init__(self) -> None:
        super().__init__()
        file = BytesIO()
        Image.new("RGB", (8, 8), "teal").save(file, "PNG")
        self._image = GeneratedImage(file.getvalue(), PROFILES)

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        return nullcontext()

    async def generate(self, task: ImageTask) -> GeneratedImage:
        return self._image


class WaitingConductor(FakeConductor):
    """Makes an image when `go` is set; knows what was begun and what was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.tasks: list[ImageTask] = []
        self.cancelled = 0

    async def generate(self, task: ImageTask) -> GeneratedImage:
        self.tasks.append(task)
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().generate(task)

    @property
    def job_id(self) -> str:
        """The id of the job that was begun first."""
        return self.tasks[0].id.rpartition("-")[0]


class ScriptedConductor(FakeConductor):
    """Streams the events that a test says of each image, and at last the image."""

    def __init__(self) -> None:
        super().__init__()
        self._scripts: dict[str, asyncio.Queue[ImageEvent | Exception | None]] = {}
        self.begun = asyncio.Semaphore(0)  # released by each image
        self.cancelled = 0

    def say(self, event: ImageEvent | Exception | None, number: int = 0) -> None:
        """Let an image of the only job have an event, or an error, or end with None."""
        (script,) = (script for id, script in self._scripts.items() if id.endswith(f"-{number}"))
        script.put_nowait(event)

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        script = self._scripts[task.id] = asyncio.Queue()
        self.begun.release()
        try:
            while (event := await script.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
            yield Generated(await self.generate(task))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            del self._scripts[task.id]
            self.outlooks.pop(task.id, None)


class FailingConductor(FakeConductor):
    """Fails at one image, the second; the others wait until they are cancelled."""

    def __init__(self, error: Exception, at: int = 1) -> None:
        super().__init__()
        self.error = error
        self.at = at
        self.begun = 0
        self.cancelled = 0

    async def generate(self, task: ImageTask) -> GeneratedImage:
        self.begun += 1
        self.calls.append(task)
        if task.id.endswith(f"-{self.at}"):
            raise self.error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("nobody cancelled it")

    @property
    def job_id(self) -> str:
        """The id of the job that was begun first."""
        return self.calls[0].id.rpartition("-")[0]
