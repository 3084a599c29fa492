"""Stages that keep the `StageClient` contract without Ray: real replicas, or a script of events."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample, StageSegment, with_prompt_info
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import ReplicaLost
from serve_app.core.scheduling.step_scheduler import WorkKind
from serve_app.core.service.events import ReplicaStats, SegmentDone, Snapshot

# 100 TFLOP a second
_STEPS = [TurnKind(WorkKind.STEP, stage, "demo", 1024, 1024, 2) for stage in Stage]
PRICES = CostTable({turn: turn.tflop / 100 for turn in _STEPS})

Trouble = Callable[[int, Sample[Any]], Exception | None]


class CountingStage:
    """Walks a sample by counting: latents are the number of steps taken by anybody.

    `trouble(call, sample)` is asked before every step and may end the stream with an error.
    """

    def __init__(
        self,
        *,
        every: int = 5,
        trouble: Trouble | None = None,
        ready: int = 1,
        warnings: tuple[str, ...] = (),
        shortfall: str = "",
        prices: CostTable = PRICES,
    ) -> None:
        self.every = every
        self.trouble = trouble or (lambda call, sample: None)
        self.ready = ready
        self.warnings = warnings
        self.shortfall = shortfall
        self.prices = prices
        self.calls: list[tuple[int, StageSegment]] = []  # index at which each call began
        self.steps = 0
        self.closed = 0

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        call = len(self.calls)
        self.calls.append((sample.index, leg))
        sample = with_prompt_info(sample, 1, self.warnings)
        try:
            while sample.index < leg.stop:
                if error := self.trouble(call, sample):
                    raise error
                self.steps += 1
                taken = (sample.latents or 0) + 1
                sample = replace(sample, index=sample.index + 1, latents=taken, profile="p")
                if sample.index % self.every == 0:
                    yield Snapshot(sample)
            yield SegmentDone(
                sample, b"png %d" % sample.latents if leg.last else None, GpuTime(0.5), self.prices
            )
        finally:
            self.closed += 1

    async def stats(self) -> list[ReplicaStats]:
        return [
            ReplicaStats(
                1, "p", "", 0, 0, 0, 0, 0.0, 0.0, 1.5, self.prices, {}, shortfall=self.shortfall
            )
        ] * self.ready


def dies_at(*deaths: tuple[int, int]) -> Trouble:
    """The replica of call n is lost at a step index, for each pair (n, index)."""

    def trouble(call: int, sample: Sample[Any]) -> Exception | None:
        return ReplicaLost("gone") if (call, sample.index) in deaths else None

    return trouble
