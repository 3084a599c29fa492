"""`StageClient`: the contract of whatever runs one stage of an image, wherever its replicas are."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.service.events import ReplicaStats, StageEvent
from serve_app.core.service.tasks import ImageSnapshot


class StageClient(Protocol):
    """One stage, wherever its replicas are."""

    def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream `SampleEvent`s and at last one `SegmentDone`; raise named errors.

        Closing the stream cancels the sample.
        """

    async def watch(self, id: str, *, watched: bool) -> None:
        """Let whichever replica has a sample make previews of it, or no longer.

        Raises nothing: who watches sees no more than that.
        """

    async def take(self, id: str) -> list[ImageSnapshot]:
        """Return what replicas have of an image whose job this process has taken over.

        The work of another process at it ends. Raises nothing: what can't be reached has nothing to
        give.
        """

    async def stats(self) -> list[ReplicaStats]:
        """Return the stats of each replica of the stage; an empty list while none is ready."""
