"""`LocalStage`: the `StageClient` contract over one replica in this process, without Ray."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.service.events import ReplicaStats, StageEvent
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.deployments.stage_replica import StageReplica


class LocalStage:
    """One replica as a stage, for one process of several if it has a `sender`."""

    def __init__(self, replica: StageReplica, sender: str = "") -> None:
        self.replica = replica
        self.sender = sender

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream the replica's events."""
        sent = replace(segment, sender=self.sender)
        async with aclosing(self.replica.advance(sample, sent)) as events:
            async for event in events:
                yield event

    async def watch(self, id: str, *, watched: bool) -> None:
        """Let the replica make previews of a sample, or no longer."""
        await self.replica.watch(id, watched)

    async def take(self, id: str) -> list[ImageSnapshot]:
        """Return what the replica has of an image, whose work there ends."""
        kept = await self.replica.take(id, self.sender)
        return [] if kept is None else [kept]

    async def stats(self) -> list[ReplicaStats]:
        """Return the stats of the one replica."""
        return [await self.replica.stats()]


def cpu_stage(models: Sequence[ModelSource], **options: Any) -> StageConfig:
    """Return the configuration of a strict replica on one CPU thread, for batches of two images."""
    plain: dict[str, Any] = {
        "device": "cpu",
        "precision": None,
        "xformers": False,
        "cpu_threads": 1,
        "max_batch_images": 2,
        "strict": True,
        "snapshot_interval_steps": 5,
    }
    return StageConfig(models=tuple(models), **(plain | options))
