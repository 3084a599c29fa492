"""Stages that keep the `StageClient` contract without Ray: steps are counted, not computed."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, with_prompt_info
from serve_app.core.diffusion.spec import Stage
from serve_app.core.replica_errors import ReplicaDied
from serve_app.core.scheduling.work import WorkKind
from serve_app.core.service.events import ReplicaStats, SegmentDone, Snapshot, StageEvent
from serve_app.core.service.tasks import ImageSnapshot
from tests.support.builders import replica_stats
from tests.support.waiting import until_async

# 100 TFLOP a second
_STEPS = [TurnKind(WorkKind.STEP, ModelKey(stage, "demo"), 1024, 1024, 2) for stage in Stage]
COSTS = CostTable({turn: turn.tflop / 100 for turn in _STEPS})

StageEvents = AsyncGenerator[StageEvent, None]
Fault = Callable[[int, Sample[Any]], Exception | None]


class CountingStage:
    """Walks a sample by counting: its latents are the number of steps taken so far.

    `fault(call, sample)` is called before every step and may return an error to end the stream.
    """

    def __init__(
        self,
        *,
        every: int = 5,
        fault: Fault | None = None,
        ready: int = 1,
        warnings: tuple[str, ...] = (),
        shortfall: str = "",
        costs: CostTable = COSTS,
    ) -> None:
        self.every = every
        self.fault = fault or (lambda call, sample: None)
        self.ready = ready
        self.warnings = warnings
        self.shortfall = shortfall
        self.costs = costs
        self.calls: list[tuple[int, StageSegment]] = []  # index at which each call began
        self.callers: list[Caller] = []  # of each call
        self.steps = 0
        self.closed = 0
        self.models: tuple[ModelKey, ...] = ()  # in memory
        self.stats_calls = 0
        self.watched: dict[str, bool] = {}  # by id: the last call of `watch`
        self.kept: dict[str, ImageSnapshot] = {}  # by id: of images whose senders are gone

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        call = len(self.calls)
        self.calls.append((sample.index, segment))
        self.callers.append(sample.caller)
        sample = with_prompt_info(sample, 1, self.warnings)
        try:
            await self.before_first_step(call)
            while sample.index < segment.stop:
                if error := self.fault(call, sample):
                    raise error
                self.steps += 1
                taken = (sample.latents or 0) + 1
                sample = replace(sample, index=sample.index + 1, latents=taken, profile="p")
                if sample.index % self.every == 0:
                    yield Snapshot(sample)
            png = b"png %d" % (sample.latents or 0) if segment.last else None
            yield SegmentDone(sample, png, GpuTime(0.5), self.costs)
        finally:
            self.closed += 1

    async def before_first_step(self, call: int) -> None:
        """Return when the sample of call number `call` may take its first step."""

    async def has_calls(self, count: int) -> None:
        """Wait until `count` samples have arrived."""
        await until_async(lambda: len(self.calls) >= count)

    async def has_stats(self) -> None:
        """Wait until the stats were read that are now in force."""
        count = self.stats_calls
        await until_async(lambda: self.stats_calls > count)
        await asyncio.sleep(0)

    async def watch(self, id: str, *, watched: bool) -> None:
        self.watched[id] = watched

    async def take(self, id: str) -> list[ImageSnapshot]:
        return [kept] if (kept := self.kept.pop(id, None)) else []

    async def stats(self) -> list[ReplicaStats]:
        self.stats_calls += 1
        stats = replica_stats(
            owed_seconds=1.5, costs=self.costs, shortfall=self.shortfall, models=self.models
        )
        return [stats] * self.ready


class BlockedStage(CountingStage):
    """Takes no step before `release` is set; with `free` calls that need not wait for it."""

    def __init__(self, *, free: int = 0, costs: CostTable = COSTS) -> None:
        super().__init__(costs=costs)
        self.release = asyncio.Event()
        self.tasks: list[asyncio.Task[Any]] = []  # of tests that wait for its images later
        self._free = free

    async def before_first_step(self, call: int) -> None:
        if call >= self._free:
            await self.release.wait()


def dies_at(*deaths: tuple[int, int]) -> Fault:
    """Return a fault that loses the replica of call n at a step index, for each (n, index)."""

    def fault(call: int, sample: Sample[Any]) -> Exception | None:
        return ReplicaDied("the replica is gone") if (call, sample.index) in deaths else None

    return fault


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    offset = 0.0  # seconds

    def time(self) -> float:
        return super().time() + self.offset


class SlowStage(CountingStage):
    """Takes some seconds before the first step of each call, on a `JumpingLoop`."""

    def __init__(self, seconds: float, *, fault: Fault | None = None) -> None:
        super().__init__(fault=fault)
        self._seconds = seconds

    async def before_first_step(self, call: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.offset += self._seconds
        await asyncio.sleep(0.001)  # a wait in which timers that are due now can fire
