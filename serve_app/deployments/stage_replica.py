"""`StageReplica`: an engine behind a streaming method. Base and refiner are the same class, and one
replica may run both.

Knows no HTTP and no other replica. The device's work happens on the engine's own thread; the event
loop only passes messages. Torch is imported when a replica is made, not before: the builder and
the ingress import this module too, and never need it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.core.capacity.fleet import Report
from serve_app.core.capacity.forecast import forecast
from serve_app.core.diffusion.sample import Leg, Sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.memory_plan import shortfalls
from serve_app.core.service.events import Arrived, ReplicaFacts, Snapshot
from serve_app.core.service.metrics import Meter, Tally
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.lora_file import inspect_lora

if TYPE_CHECKING:
    from serve_app.runtime.engine_events import Event
    from serve_app.runtime.memory.model_cache import Shelf

_PNG_THREADS = 2
_NEWS = 3  # reports of nothing that are news yet: routers believe no single one
_STILL_HERE = 10  # of the later ones, each so manieth
_TOLD_EVERY = 1.0  # seconds between two accounts to the meter


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from, on the replica's machine."""

    name: str
    path: Path | None  # None: the demo, wherever the package lies there
    configs: Path | None = None  # folder of what a single file lacks
    stage: Stage = Stage.BASE

    @property
    def key(self) -> str:
        """What samples call it: see `Sample.model`."""
        return self.name if self.stage is Stage.BASE else ""


@dataclass(frozen=True, slots=True)
class LoraSource:
    """Where a LoRA comes from, on the replica's machine, and the models that it fits."""

    name: str
    path: Path
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageConfig:
    """All a replica needs to know, by value: no replica reads the environment."""

    models: tuple[Source, ...]  # base models, the default one first, and the refiner: any or both
    device: str  # cpu, cuda or mps
    precision: str | None
    xformers: bool
    cpu_threads: int
    images: int  # how many step together, where the device has room
    strict: bool
    snapshot_every: int
    safety: Path | None = None  # folder of the picture filter, where one is on
    room: int = 1  # how many models are in memory at a time
    loras: tuple[LoraSource, ...] = ()
    lora_room: int = 1  # how many of them each model has attached at a time
    share: float = 1.0  # of its card's memory

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What it runs, base first."""
        return tuple(dict.fromkeys(source.stage for source in self.models))


def load_shelf(config: StageConfig) -> "Shelf":
    """The models of a replica, each seen to be whole, the first one on its device.

    Where it runs both stages the refiner has been there too. It never goes back to disk, and one
    model more than are in memory at a time stays on the host: so neither does the base whose
    pictures it refines. Raises `OperatorError` naming what is wrong.
    """
    from serve_app.runtime.build import assemble
    from serve_app.runtime.memory.device import open_device
    from serve_app.runtime.memory.model_cache import Maker, Shelf
    from serve_app.runtime.networks.safety_checker import PictureChecker

    device = open_device(
        config.device,
        precision=config.precision,
        xformers=config.xformers,
        cpu_threads=config.cpu_threads,
        share=config.share,
    )
    safety = PictureChecker(config.safety, device) if config.safety else None
    files = {lora.name: inspect_lora(lora.path, lora.name) for lora in config.loras}
    makers: dict[str, Maker] = {}
    for source in config.models:
        path = source.path or demo_folder(source.stage)
        found = inspect(path, source.stage, configs=source.configs, where=source.name)
        checkpoint = replace(found, name=source.name)
        makers[source.key] = partial(
            assemble,
            checkpoint,
            device,
            images=config.images,
            strict=config.strict,
            safety=safety,
            loras={one.name: files[one.name] for one in config.loras if source.name in one.models},
            lora_room=config.lora_room,
        )
    always = [source.key for source in config.models if source.stage is not config.stages[0]]
    return Shelf(
        makers,
        room=config.room,
        parked=len(always),
        always=always,
        lora_room=config.lora_room,
    )


class StageReplica:
    """One replica of a stage: takes samples, gives back snapshots and, at the end, the sample."""

    def __init__(
        self,
        config: StageConfig,
        meter: Callable[[], Meter] = Tally,
        load: Callable[[StageConfig], "Shelf"] = load_shelf,
    ) -> None:
        from serve_app.deployments.engine_metrics import StepLog
        from serve_app.runtime.engine import Engine

        shelf = load(config)
        self._profile = shelf.profile.name
        self._images = config.images
        refiner = str(Stage.REFINER) if len(config.stages) > 1 else ""  # alone it needs no name
        self._called = {one.key: one.key or refiner for one in config.models}
        self._pngs = ThreadPoolExecutor(_PNG_THREADS, thread_name_prefix="png")
        self._log = StepLog(meter())
        self._telling: asyncio.Task[None] | None = None
        self._reports, self._idle = 0, 0
        self._engine = Engine(shelf, snapshot_every=config.snapshot_every, note=self._log.note)
        self._engine.start()

    async def advance(self, sample: Sample[Any], leg: Leg) -> AsyncIterator[Any]:
        """Walks a sample to the end of its leg: `Snapshot`s on the way, then one `Arrived`.

        Raises the named error the leg ended with. However the wait ends, the sample has left the
        engine at the next step boundary.
        """
        from serve_app.runtime.engine_events import Failed, Finished
        from serve_app.runtime.networks.vae import encode_png

        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def listen(event: "Event") -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
        since = self._log.came(sample.id)
        self._engine.submit(sample, leg, listen)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    png = None
                    if event.picture is not None:
                        png = await loop.run_in_executor(self._pngs, encode_png, event.picture)
                    # a picture that is done needs its latents no more
                    sample = replace(event.sample, latents=None) if png else event.sample
                    yield Arrived(sample, png, event.spent, event.prices)
                    return
                yield Snapshot(event.sample)
        finally:
            self._engine.cancel(sample.id, listen)
            self._log.left(sample.id, since)

    async def facts(self) -> ReplicaFacts:
        """What this replica is and has done, as of its last turn."""
        engine = self._engine.facts()
        there = engine.models
        fits = {called: there[key] for key, called in self._called.items() if key in there}
        return ReplicaFacts(
            pid=os.getpid(),
            profile=self._profile,
            state=engine.state,
            turns=engine.turns,
            steps=engine.steps,
            finished=engine.finished,
            cancelled=engine.cancelled,
            busy_seconds=engine.busy_seconds,
            wasted_seconds=engine.wasted_seconds,
            owed_seconds=forecast(self._engine.owed(), engine.prices).seconds,
            prices=engine.prices,
            positions=engine.positions,
            models=tuple(self._called[key] for key in there),
            shortfall=shortfalls(self._images, fits),
        )

    async def record_routing_stats(self) -> dict[str, Any]:
        """What routers hear of this replica, through Serve.

        Serve tells all routers of all replicas when one report is another than before: so that of a
        replica that has nothing stays the same for most of the time.
        """
        engine, owed = self._engine.facts(), self._engine.owed()
        self._idle = 0 if owed else self._idle + 1  # reports
        if self._idle <= _NEWS or self._idle % _STILL_HERE == 0:
            self._reports += 1
        told = Report.of(self._reports, self._profile, owed, engine.models, engine.prices)
        return told.packed()

    async def _tell(self) -> None:
        """The meter hears of the engine once a second, until nothing is here any more."""
        more = True
        while more:
            await asyncio.sleep(_TOLD_EVERY)
            more = self._log.tell(await self.facts())

    def check_health(self) -> None:
        """Serve's health check: raises when the engine can't work, so that Serve replaces it."""
        self._engine.check()

    def close(self) -> None:
        """The engine has stopped; whoever waited got its last snapshot and `ReplicaLost`."""
        self._engine.close()
        self._pngs.shutdown()
