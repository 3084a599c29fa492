"""`StageReplica`: an engine behind a streaming method.

Base and refiner are the same class, and one replica may run both. No HTTP, and nothing of other
replicas. The device's work happens on the engine's thread; the event loop only passes messages.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from math import inf
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.core.capacity.forecast import forecast
from serve_app.core.capacity.replica_report import ReplicaReport
from serve_app.core.capacity.routing import max_ongoing_images
from serve_app.core.diffusion.sample import Sample, StageSegment, without_tensors
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError
from serve_app.core.replica_errors import TurnOverdue
from serve_app.core.scheduling.memory_plan import shortfalls
from serve_app.core.service.events import (
    Preview,
    Progress,
    Queued,
    ReplicaStats,
    SegmentDone,
    Snapshot,
    StageEvent,
)
from serve_app.core.service.metrics import IMAGES_ORPHANED, InMemoryMeter, Meter
from serve_app.core.service.sample_leases import SampleLeases
from serve_app.core.service.tasks import UNSUSPECTED, ImageSnapshot
from serve_app.core.startup_error import startup_errors
from serve_app.deployments.engine_metrics import EngineMetrics
from serve_app.deployments.model_loading import load_models
from serve_app.deployments.stage_config import StageConfig
from serve_app.deployments.warm_up_reports import WarmUpReports
from serve_app.deployments.watchdog import Watchdog, end_process
from serve_app.process import allocator
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished, PreviewMade
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.png import encode_png, encode_preview

logger = logging.getLogger("aura.stage")

_PNG_THREADS = 2
# Send three fresh idle reports: a router ignores up to two reports that contradict what it sent.
_IDLE_REPORTS = 3
_HEARTBEAT_EVERY = 10  # after those, every tenth report is news
_NEWS_EVERY = 2.0  # seconds without an event after which a sample's place is repeated
_POLLED_WITHIN = 3.0  # seconds: Serve polls every replica that is not about to retire
_FLUSH_EVERY = 1.0  # seconds between two flushes of the metrics


class StageReplica:
    """One replica of a stage: takes samples, and streams snapshots and at last the sample."""

    @startup_errors("a replica of base or refiner")
    def __init__(
        self,
        config: StageConfig,
        meter: Callable[[], Meter] = InMemoryMeter,
        load: Callable[[StageConfig], ModelCache] = load_models,
        ledger: "DeploymentHandle[Any] | None" = None,
    ) -> None:
        """Load the models and compile them, of which the ledger hears."""
        allocator.keep_large_blocks()
        models = load(config)
        models.warm_up(WarmUpReports(ledger))
        self._profile = models.profile.name
        self._max_images = config.max_batch_images
        refiner = str(Stage.REFINER) if len(config.stages) > 1 else None  # alone it needs no name
        self._shortfall_names = {
            source.key: source.name if source.stage is Stage.BASE else refiner
            for source in config.models
        }
        self._png_threads = ThreadPoolExecutor(_PNG_THREADS, thread_name_prefix="png")
        self._meter = meter()
        self._metrics = EngineMetrics(self._meter)
        self._flushing: asyncio.Task[None] | None = None
        self._leases = SampleLeases(max_ongoing_images(config.max_batch_images))
        self._samples = Counter[str]()  # streams, by the id of the sample
        self._ticking: asyncio.Task[None] | None = None
        self._last_poll = -inf  # when Serve last asked for a report
        self._report_number, self._idle_reports = 0, 0
        self._last_report: dict[str, Any] = {}
        self._engine = Engine(
            models,
            snapshot_every=config.snapshot_interval_steps,
            on_step=self._metrics.on_step,
            on_unwell=end_process,
        )
        self._engine.start()
        self._watchdog = Watchdog(lambda: self._engine.current_turn)
        self._watchdog.start()

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Step a sample to the end of its segment: stream `SampleEvent`s, then one `SegmentDone`.

        The sample's place is repeated every two seconds, unless the engine's turn hangs: then
        `TurnOverdue` is raised. Raises the named error that ended the segment. However the stream
        ends, the sample leaves the engine at the next step boundary.
        """
        loop = asyncio.get_running_loop()
        self._watchdog.watch_loop(loop)
        events: asyncio.Queue[Event] = asyncio.Queue()

        def listen(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def drop(error: AuraError) -> None:
            self._engine.cancel(sample.id, listen)
            events.put_nowait(Failed(error))

        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_metrics(), context=Context())
        arrival = self._metrics.sample_arrived(sample.id, sample.stage)
        suspicion = segment.suspicion or UNSUSPECTED
        lease, is_done = self._leases.begin(segment.sender, sample, drop, suspicion), False
        self._samples[sample.id] += 1
        try:
            self._keep_leases()
            self._engine.submit(sample, segment, listen)
            place: Queued | Progress = Queued()
            yield place
            while True:
                match await self._next_event(events):
                    case Failed(error):
                        raise error
                    case Finished() as done:
                        segment_done = await self._segment_done(done)
                        is_done = True
                        lease.note(segment_done)
                        yield segment_done
                        return
                    case None:
                        yield place
                    case Snapshot() as snapshot:
                        lease.note(snapshot)
                        yield snapshot
                    case PreviewMade(index, image):
                        yield Preview(index, await self._encode(encode_preview, image))
                    case place:
                        lease.note(place)
                        yield place
        finally:
            self._samples -= Counter([sample.id])
            self._leases.end(lease, is_done=is_done)
            self._engine.cancel(sample.id, listen)
            self._metrics.sample_left(arrival)

    async def watch(self, id: str, watched: bool) -> None:
        """Make previews of a sample, if it is here, because somebody watches; or no longer."""
        if self._samples[id]:
            self._engine.watch(id, watched=watched)

    async def renew(self, sender: str) -> None:
        """Note that the process with this id still wants what it has sent."""
        self._leases.renew(sender)

    async def take(self, id: str, taker: str) -> ImageSnapshot | None:
        """Return the newest snapshot of an image whose job the sender `taker` has taken over.

        The work of another sender at it ends.
        """
        return self._leases.take(id, taker)

    async def stats(self) -> ReplicaStats:
        """Return what this replica is and has done."""
        engine, plans = self._engine.stats(), self._engine.memory_plans
        named = {name: plans[key] for key, name in self._shortfall_names.items() if key in plans}
        return ReplicaStats(
            pid=os.getpid(),
            profile=self._profile,
            engine=engine,
            owed_seconds=forecast(self._engine.pending(), engine.costs).seconds,
            shortfall=shortfalls(self._max_images, named),
            is_hanging=self._engine.is_silent(),
        )

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return this replica's report to the routers, which Serve calls for and passes on.

        Serve notifies all routers whenever a report differs from the one before, so the reports of
        an idle replica are the same most of the time. While a turn hangs the last report is
        repeated, and routers prefer other replicas.
        """
        self._last_poll = time.monotonic()
        if self._engine.is_silent():
            return self._last_report
        engine, pending = self._engine.stats(), self._engine.pending()
        self._idle_reports = 0 if pending else self._idle_reports + 1
        if self._idle_reports <= _IDLE_REPORTS or self._idle_reports % _HEARTBEAT_EVERY == 0:
            self._report_number += 1
        self._last_report = ReplicaReport.of(
            self._report_number,
            self._profile,
            pending,
            engine.models,
            engine.costs,
            engine.seconds_by_caller,
        ).to_wire()
        return self._last_report

    def check_health(self) -> None:
        """Raise when the engine can't work, or its turn hangs, so that Serve replaces the replica.

        Serve calls this on the event loop, waits for no more than the timeout of the deployment,
        and gives a replica up after three failures in a row.
        """
        self._engine.check()

    def close(self) -> None:
        """Stop the engine; every open stream gets its last snapshot and `ReplicaLost`."""
        self._watchdog.stop()
        self._engine.close()
        self._png_threads.shutdown()

    async def _next_event(self, events: "asyncio.Queue[Event]") -> Event | None:
        """Wait for an event of the engine; return None after two seconds without one.

        Raises `TurnOverdue` if none will come for long.
        """
        try:
            async with asyncio.timeout(_NEWS_EVERY):
                return await events.get()
        except TimeoutError:
            if self._engine.is_silent():
                raise TurnOverdue("the replica's turn takes far too long") from None
            return None

    async def _segment_done(self, done: Finished) -> SegmentDone[Any]:
        sample, png = done.sample, None
        if done.image is not None:
            png = await self._encode(encode_png, done.image)
            sample = without_tensors(sample)
        return SegmentDone(sample, png, done.gpu_time, done.costs)

    async def _encode(self, encode: Callable[[RgbImage], bytes], image: RgbImage) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._png_threads, encode, image)

    def _keep_leases(self) -> None:
        """Tick while there are senders."""
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick(), context=Context())

    async def _tick(self) -> None:
        while not self._leases.is_idle:
            await asyncio.sleep(1.0)
            if time.monotonic() - self._last_poll > _POLLED_WITHIN:
                continue  # Serve retires this replica, and senders reach it no more
            if orphans := self._leases.tick(time.monotonic()):
                self._meter.record(IMAGES_ORPHANED, orphans)
                logger.warning("dropped %d images of an ingress that is gone", orphans)

    async def _flush_metrics(self) -> None:
        """Flush the metrics every second while there are samples."""
        more = True
        while more:
            await asyncio.sleep(_FLUSH_EVERY)
            more = self._metrics.flush(await self.stats())
