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

from serve_app.core.capacity.forecast import forecast
from serve_app.core.capacity.replica_report import ReplicaReport
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.memory_plan import shortfalls
from serve_app.core.service.events import ReplicaStats, SegmentDone, Snapshot
from serve_app.core.service.metrics import InMemoryMeter, Meter
from serve_app.core.startup_error import startup_errors
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.lora_file import inspect_lora

if TYPE_CHECKING:
    from serve_app.runtime.engine_events import Event
    from serve_app.runtime.memory.model_cache import ModelCache

_PNG_THREADS = 2
_IDLE_REPORTS = 3  # reports of nothing that are news yet: routers believe no single one
_HEARTBEAT_EVERY = 10  # of the later ones, each so manieth
_FLUSH_EVERY = 1.0  # seconds between two accounts to the meter


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from, on the replica's machine."""

    name: str
    path: Path | None  # None: the demo, wherever the package lies there
    configs_dir: Path | None = None  # folder of what a single file lacks
    stage: Stage = Stage.BASE

    @property
    def key(self) -> ModelKey:
        """The key by which samples name it."""
        return ModelKey(self.stage, self.name)


@dataclass(frozen=True, slots=True)
class LoraSource:
    """Where a LoRA comes from, on the replica's machine, and the models that it fits."""

    name: str
    path: Path
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageConfig:
    """All a replica needs to know, by value: no replica reads the environment."""

    models: tuple[
        ModelSource, ...
    ]  # base models, the default one first, and the refiner: any or both
    device: str  # cpu, cuda or mps
    precision: str | None
    xformers: bool
    cpu_threads: int
    max_batch_images: int  # how many step together, where the device has room
    strict: bool
    snapshot_interval_steps: int
    safety_checker_dir: Path | None = None  # folder of the picture filter, where one is on
    max_loaded_models: int = 1  # how many models are in memory at a time
    loras: tuple[LoraSource, ...] = ()
    max_loaded_loras: int = 1  # how many of them each model has attached at a time
    memory_fraction: float = 1.0  # of its card's memory

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What it runs, base first."""
        return tuple(dict.fromkeys(source.stage for source in self.models))


def load_models(config: StageConfig) -> "ModelCache":
    """The models of a replica, each seen to be whole, the first one on its device.

    Where it runs both stages the refiner has been there too. It never goes back to disk, and one
    model more than are in memory at a time stays on the host: so neither does the base whose
    pictures it refines. Raises `OperatorError` naming what is wrong.
    """
    from serve_app.runtime.build import build_stage_model
    from serve_app.runtime.memory.device import open_device
    from serve_app.runtime.memory.model_cache import Loader, ModelCache
    from serve_app.runtime.networks.safety_checker import ImageSafetyChecker

    device = open_device(
        config.device,
        precision=config.precision,
        xformers=config.xformers,
        cpu_threads=config.cpu_threads,
        memory_fraction=config.memory_fraction,
    )
    safety = (
        ImageSafetyChecker(config.safety_checker_dir, device) if config.safety_checker_dir else None
    )
    files = {lora.name: inspect_lora(lora.path) for lora in config.loras}
    makers: dict[ModelKey, Loader] = {}
    for source in config.models:
        path = source.path or demo_folder(source.stage)
        found = inspect(path, source.stage, configs=source.configs_dir)
        checkpoint = replace(found, name=source.name)
        makers[source.key] = partial(
            build_stage_model,
            checkpoint,
            device,
            images=config.max_batch_images,
            strict=config.strict,
            safety=safety,
            loras={one.name: files[one.name] for one in config.loras if source.name in one.models},
            lora_capacity=config.max_loaded_loras,
        )
    always = [source.key for source in config.models if source.stage is not config.stages[0]]
    return ModelCache(
        makers,
        capacity=config.max_loaded_models,
        offload_capacity=len(always),
        pinned=always,
        lora_capacity=config.max_loaded_loras,
    )


class StageReplica:
    """One replica of a stage: takes samples, gives back snapshots and, at the end, the sample."""

    def __init__(
        self,
        config: StageConfig,
        meter: Callable[[], Meter] = InMemoryMeter,
        load: Callable[[StageConfig], "ModelCache"] = load_models,
    ) -> None:
        from serve_app.deployments.engine_metrics import EngineMetrics
        from serve_app.runtime.engine import Engine

        with startup_errors():
            shelf = load(config)
        self._profile = shelf.profile.name
        self._images = config.max_batch_images
        refiner = str(Stage.REFINER) if len(config.stages) > 1 else None  # alone it needs no name
        self._labels = {
            source.key: source.name if source.stage is Stage.BASE else refiner
            for source in config.models
        }
        self._pngs = ThreadPoolExecutor(_PNG_THREADS, thread_name_prefix="png")
        self._log = EngineMetrics(meter())
        self._telling: asyncio.Task[None] | None = None
        self._reports, self._idle = 0, 0
        self._engine = Engine(
            shelf, snapshot_every=config.snapshot_interval_steps, on_step=self._log.on_step
        )
        self._engine.start()

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> AsyncIterator[Any]:
        """Walks a sample to the end of its leg: `Snapshot`s on the way, then one `Arrived`.

        Raises the named error the leg ended with. However the wait ends, the sample has left the
        engine at the next step boundary.
        """
        from serve_app.runtime.engine_events import Failed, Finished
        from serve_app.runtime.png import encode_png

        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def listen(event: "Event") -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._flush_metrics())
        arrival = self._log.sample_arrived(sample.id, sample.stage)
        self._engine.submit(sample, segment, listen)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    png = None
                    if event.image is not None:
                        png = await loop.run_in_executor(self._pngs, encode_png, event.image)
                    # a picture that is done needs its latents no more
                    sample = replace(event.sample, latents=None) if png else event.sample
                    yield SegmentDone(sample, png, event.gpu_time, event.costs)
                    return
                yield Snapshot(event.sample)
        finally:
            self._engine.cancel(sample.id, listen)
            self._log.sample_left(arrival)

    async def stats(self) -> ReplicaStats:
        """What this replica is and has done, as of its last turn."""
        engine = self._engine.stats()
        plans = {
            label: engine.models[key] for key, label in self._labels.items() if key in engine.models
        }
        return ReplicaStats(
            pid=os.getpid(),
            profile=self._profile,
            state=engine.state,
            turns=engine.turns,
            steps=engine.steps,
            finished=engine.finished,
            cancelled=engine.cancelled,
            gpu_seconds=engine.gpu_seconds,
            wasted_gpu_seconds=engine.wasted_gpu_seconds,
            owed_seconds=forecast(self._engine.pending(), engine.costs).seconds,
            costs=engine.costs,
            positions=engine.positions,
            models=tuple(str(key) for key in engine.models),
            shortfall=shortfalls(self._images, plans),
        )

    async def record_routing_stats(self) -> dict[str, Any]:
        """What routers hear of this replica, through Serve.

        Serve tells all routers of all replicas when one report is another than before: so that of a
        replica that has nothing stays the same for most of the time.
        """
        engine, owed = self._engine.stats(), self._engine.pending()
        self._idle = 0 if owed else self._idle + 1  # reports
        if self._idle <= _IDLE_REPORTS or self._idle % _HEARTBEAT_EVERY == 0:
            self._reports += 1
        told = ReplicaReport.of(self._reports, self._profile, owed, engine.models, engine.costs)
        return told.to_wire()

    async def _flush_metrics(self) -> None:
        """The meter hears of the engine once a second, until nothing is here any more."""
        more = True
        while more:
            await asyncio.sleep(_FLUSH_EVERY)
            more = self._log.flush(await self.stats())

    def check_health(self) -> None:
        """Serve's health check: raises when the engine can't work, so that Serve replaces it."""
        self._engine.check()

    def close(self) -> None:
        """The engine has stopped; whoever waited got its last snapshot and `ReplicaLost`."""
        self._engine.close()
        self._pngs.shutdown()
