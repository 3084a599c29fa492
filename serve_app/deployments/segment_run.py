"""`SegmentRun`: one segment of an image, on as many replicas as it takes.

No HTTP, no Ray and no torch: a stage is anything that keeps the `StageClient` contract.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import assert_never

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import EngineFault, ReplicaLost
from serve_app.core.service.backlog import Backlog, ImageInFlight
from serve_app.core.service.events import Progress, Queued, SegmentDone, Snapshot, StageEvent
from serve_app.core.service.metrics import IMAGES_RESUMED, Meter, ResumeReason
from serve_app.deployments.deadline import Deadline
from serve_app.deployments.stage_client import StageClient

logger = logging.getLogger("aura.conductor")

MAX_LOSSES = 3  # replicas lost at the same step: then the image itself is what kills them


@dataclass(frozen=True, slots=True)
class SegmentRun:
    """What it takes to run segments. `default_timeout` is the conductor's."""

    stages: Mapping[Stage, StageClient]
    backlog: Backlog  # whose costs each finished segment renews
    meter: Meter
    default_timeout: Callable[[], float]

    async def events(
        self, image: ImageInFlight, segment: StageSegment, deadline: Deadline | None
    ) -> AsyncGenerator[StageEvent, None]:
        """Run one segment and stream its events, of which an equal one is not repeated.

        Each lost replica costs the steps since the last snapshot, and extends the deadline. Raises
        what the stage raises.
        """
        client, losses = self.stages[segment.stage], 0
        last: StageEvent | None = None
        while True:
            try:
                async with aclosing(client.advance(image.sample, segment)) as events:
                    async for event in events:
                        match event:
                            case Queued() | Progress():
                                if event != last:
                                    yield event
                            case Snapshot(sample):
                                image.sample, losses = sample, 0
                                yield event
                            case SegmentDone(sample, png, _, costs):
                                image.sample, image.png = sample, png
                                self.backlog.costs[segment.stage] = costs
                                yield event
                                return
                            case _:
                                assert_never(event)
                        last = event
                raise EngineFault(f"the {segment.stage} stage ended without a result")
            except ReplicaLost as loss:
                losses += 1
                if losses >= MAX_LOSSES:
                    raise
                if deadline is not None:  # the time until the loss was noticed does not count
                    deadline.extend(self.default_timeout())
                self.meter.record(IMAGES_RESUMED, reason=ResumeReason.LOST)
                logger.warning(
                    "%s: %s; continuing at step %d of %d",
                    image.sample.id,
                    loss,
                    image.sample.index,
                    segment.stop,
                )
