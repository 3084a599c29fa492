"""`SegmentRun`: one segment of an image, on as many replicas as it takes.

No HTTP, no Ray and no torch: a stage is anything that keeps the `StageClient` contract.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import assert_never

from serve_app.core.capacity.cost_model import turn_kind
from serve_app.core.capacity.overdue import silence_limit
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import EngineFault, ReplicaLost
from serve_app.core.replica_errors import (
    LeaseExpired,
    ReplicaDied,
    ReplicasExhausted,
    ReplicaSilent,
    TurnOverdue,
)
from serve_app.core.scheduling.work import WorkKind
from serve_app.core.service.backlog import ImageInFlight
from serve_app.core.service.convictions import image_kills_replica
from serve_app.core.service.events import (
    Accepted,
    Preview,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    StageEvent,
)
from serve_app.core.service.metrics import (
    IMAGES_CONVICTED,
    IMAGES_QUARANTINED,
    IMAGES_RESUMED,
    REPLICAS_SILENT,
    Meter,
    ResumeReason,
)
from serve_app.core.service.suspicion import Loss
from serve_app.deployments.admission import Admission
from serve_app.deployments.deadline import Deadline
from serve_app.deployments.silence import watch_silence
from serve_app.deployments.stage_client import StageClient
from serve_app.deployments.watches import Watches

logger = logging.getLogger("aura.conductor")

MAX_CLOSINGS = 3  # replicas that closed at the same step of an image before it is given up
_MAX_AVOIDED = 8  # replicas that an image avoids: the last that fell silent with it


@dataclass(slots=True)
class SegmentRun:
    """What it takes to run segments. `default_timeout` is the conductor's."""

    stages: Mapping[Stage, StageClient]
    admission: Admission  # of which each finished segment renews the costs
    meter: Meter
    default_timeout: Callable[[ImageInFlight], float]
    watches: Watches
    silence: Callable[[float], float] = silence_limit
    _silent: set[str] = field(default_factory=set)  # replicas that were counted

    async def events(
        self,
        image: ImageInFlight,
        segment: StageSegment,
        deadline: Deadline,
        confirm: Callable[[], Awaitable[None]],
    ) -> AsyncGenerator[StageEvent, None]:
        """Run one segment and stream its events, of which an equal one is not repeated.

        Each lost replica costs the steps since the last snapshot, and extends the deadline.
        `confirm` is the task's. Raises what the stage raises, what `confirm` raises,
        `ImageKillsReplica`, or `ReplicasExhausted`.
        """
        closings = 0
        while True:
            index = image.sample.index
            deadline.begin_wait(self.admission.seconds_from_turn(image))
            try:
                async with aclosing(self._attempt(image, segment)) as events:
                    async for event in events:
                        if isinstance(event, Progress | Snapshot):
                            deadline.end_wait()
                        yield event
                return
            except LeaseExpired as loss:
                await confirm()
                self.meter.record(IMAGES_RESUMED, reason=ResumeReason.EXPIRED)
                logger.warning("%s: %s; sending it again", image.sample.id, loss)
            except ReplicaLost as loss:
                closings = closings + 1 if image.sample.index == index else 1
                reason = self._judge(image, segment.stage, loss, closings)
                # The time until the loss was noticed does not count.
                deadline.extend(self.default_timeout(image))
                self.meter.record(IMAGES_RESUMED, reason=reason)
                logger.warning(
                    "%s: %s; continuing at step %d of %d%s",
                    image.sample.id,
                    loss,
                    image.sample.index,
                    segment.stop,
                    ", alone at first" if image.suspicion.is_suspect else "",
                )

    async def _attempt(
        self, image: ImageInFlight, segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Run the segment on one replica, from the image's last snapshot."""
        image.suspicion = image.suspicion.after_sending()
        image.replica = ""
        sent = replace(
            segment,
            alone=image.suspicion.quarantine,
            avoid=image.avoid,
            suspicion=image.suspicion,
            watched=image.watched,
        )
        stream = self.stages[segment.stage].advance(image.sample, sent)
        last: StageEvent | None = None
        async with aclosing(watch_silence(stream, self._silence_limit(image))) as events:
            async for event in events:
                image.suspicion = image.suspicion.after_event(event)
                match event:
                    case Accepted(replica):
                        image.replica = replica
                        if image.watched is not sent.watched:
                            self.watches.pass_on(image)
                        continue
                    case Queued() | Progress():
                        if event == last:
                            continue
                        if _is_alone(event) and not _is_alone(last):
                            self.meter.record(IMAGES_QUARANTINED, stage=segment.stage)
                        last = event
                        if isinstance(event, Progress):
                            now = asyncio.get_running_loop().time()
                            self.admission.backlog.note_step(image, event.index, now)
                        else:
                            image.index = None
                    case Preview():
                        pass
                    case Snapshot(sample):
                        image.sample = sample
                        self.admission.backlog.update(image)
                    case SegmentDone(sample, png, gpu_time, costs):
                        image.sample, image.png = sample, png
                        image.gpu_seconds += gpu_time.measured
                        self.admission.backlog.set_costs(segment.stage, costs)
                        self.admission.backlog.update(image)
                    case _:
                        assert_never(event)
                yield event
                if isinstance(event, SegmentDone):
                    return
        raise EngineFault(f"the {segment.stage} stage ended without a result")

    def _judge(
        self, image: ImageInFlight, stage: Stage, loss: ReplicaLost, closings: int
    ) -> ResumeReason:
        """Return why the image continues; raise if it must not."""
        match loss:
            case ReplicaDied():
                kind, reason = Loss.DIED, ResumeReason.LOST
            case TurnOverdue():
                kind, reason = Loss.HUNG, ResumeReason.SILENT
            case ReplicaSilent():
                kind, reason = Loss.SILENT, ResumeReason.SILENT
            case _:  # it closes in an orderly way, and no image is at fault
                if closings >= MAX_CLOSINGS:
                    raise loss
                return ResumeReason.LOST
        if reason is ResumeReason.SILENT and image.replica:
            image.avoid = (*image.avoid, image.replica)[-_MAX_AVOIDED:]
            if image.replica not in self._silent:
                self._silent.add(image.replica)
                self.meter.record(REPLICAS_SILENT, stage=stage)
        image.suspicion = image.suspicion.after_loss(kind)
        if image.suspicion.is_convicted:
            self.meter.record(IMAGES_CONVICTED, stage=stage)
            raise image_kills_replica() from loss
        if image.suspicion.is_exhausted:
            raise ReplicasExhausted(
                f"{image.suspicion.deaths} replicas were lost with this image"
            ) from loss
        return reason

    def _silence_limit(self, image: ImageInFlight) -> float:
        """Return the seconds without news after which a replica is taken for sick."""
        costs = self.admission.backlog.costs[image.sample.stage]
        if not costs.is_calibrated:  # a replica repeats its news whatever a turn takes
            return self.silence(0.0)
        lanes = costs.batch_size(image.sample.model_key).rows
        return self.silence(costs.seconds(turn_kind(WorkKind.STEP, image.sample, lanes=lanes)))


def _is_alone(event: StageEvent | None) -> bool:
    return isinstance(event, Progress) and event.alone
