"""Stages whose replicas die, hang or fall silent, without Ray: steps are counted, not computed."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.replica_errors import ReplicaDied
from serve_app.core.service.events import (
    Accepted,
    Progress,
    Queued,
    ReplicaStats,
    SegmentDone,
    Snapshot,
    StageEvent,
)
from serve_app.core.service.tasks import ImageSnapshot
from tests.support.builders import replica_stats

_SNAPSHOT_EVERY, _ALONE_STEPS = 5, 7


class BatchingReplica:
    """One replica that steps its images together, or a suspect alone, one turn per `turn()`.

    It dies in a turn in which an image takes one of its `deadly` steps, or when `kill` is called;
    then it is at once as good as new, as if Serve had replaced it.
    """

    def __init__(
        self,
        deadly: dict[str, set[int]] | None = None,
        *,
        spares_next_time: bool = False,  # an image kills at one step only once
        name: str = "r1",
    ) -> None:
        self.deadly = deadly or {}
        self.spares_next_time = spares_next_time
        self.name = name
        self.deaths = 0
        self.segments: list[StageSegment] = []  # of all calls
        self.batches: list[tuple[str, ...]] = []  # the images of each turn
        self._streams: dict[str, asyncio.Queue[StageEvent | Exception]] = {}
        self._samples: dict[str, tuple[Sample[Any], StageSegment, int]] = {}  # and where it began

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream the events of a sample until its segment ends or the replica dies."""
        self.segments.append(segment)
        events = self._streams[sample.id] = asyncio.Queue()
        self._samples[sample.id] = (sample, segment, sample.index)
        try:
            yield Accepted(self.name)
            yield Queued()
            while True:
                match await events.get():
                    case Exception() as error:
                        raise error
                    case event:
                        yield event
                        if isinstance(event, SegmentDone):
                            return
        finally:
            if self._streams.get(sample.id) is events:
                del self._streams[sample.id]
                self._samples.pop(sample.id, None)

    async def watch(self, id: str, *, watched: bool) -> None:
        pass

    async def take(self, id: str) -> list[ImageSnapshot]:
        """Return nothing: its images have no senders."""
        return []

    async def stats(self) -> list[ReplicaStats]:
        """Return the stats of the one replica."""
        return [replica_stats()]

    def turn(self) -> None:
        """Run one turn: of all images, or of the first suspect that must run alone."""
        suspects = [
            id
            for id, (sample, segment, start) in self._samples.items()
            if sample.index - start < segment.alone * _ALONE_STEPS
        ]
        ids = suspects[:1] or list(self._samples)
        if not ids:
            return
        self.batches.append(tuple(ids))
        for id in ids:
            sample, segment, start = self._samples[id]
            enters = sample.index in (start, start + segment.alone * _ALONE_STEPS)
            if enters or suspects:
                self._streams[id].put_nowait(Progress(sample.index, alone=bool(suspects)))
        indices = {id: self._samples[id][0].index for id in ids}
        if any(index in self.deadly.get(id, set()) for id, index in indices.items()):
            self.kill()
            if self.spares_next_time:
                for id in ids:
                    self.deadly.get(id, set()).discard(indices[id])
            return
        for id in ids:
            self._step(id)

    def kill(self) -> None:
        """Let the process die: every stream ends."""
        self.deaths += 1
        streams, self._streams, self._samples = self._streams, {}, {}
        for events in streams.values():
            events.put_nowait(ReplicaDied("the replica is gone"))

    def _step(self, id: str) -> None:
        sample, segment, start = self._samples[id]
        sample = replace(sample, index=sample.index + 1, latents=(sample.latents or 0) + 1)
        self._samples[id] = (sample, segment, start)
        events = self._streams[id]
        if segment.alone and sample.index - start == segment.alone * _ALONE_STEPS:
            events.put_nowait(Queued())
        if sample.index == segment.stop:
            events.put_nowait(SegmentDone(sample, b"png", GpuTime(), CostTable()))
            self._samples.pop(id)
        elif (sample.index - start) % _SNAPSHOT_EVERY == 0:
            events.put_nowait(Snapshot(sample))
