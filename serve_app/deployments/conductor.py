"""The conductor: takes each image through its stages, and keeps what is needed to do so again.

No HTTP, no Ray and no torch: a stage is anything that keeps the `StageClient` contract. An image's
last snapshot, its deadline and its retries are here and nowhere else.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.demand import Demand
from serve_app.core.diffusion.sample import (
    Sample,
    for_stage,
    new_sample,
    plan_segments,
    segments_left,
    stage_profiles,
)
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    AuraError,
    EngineFault,
    ImageKillsReplica,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.service.backlog import ImageInFlight
from serve_app.core.service.convictions import Conviction, Convictions
from serve_app.core.service.events import Generated, GeneratedImage, ImageEvent, StageEvent
from serve_app.core.service.info import Health, ModelInfo
from serve_app.core.service.metrics import (
    IMAGES,
    IMAGES_RESUMED,
    STAGE_DURATION,
    ImageOutcome,
    InMemoryMeter,
    Meter,
    ResumeReason,
)
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageSnapshot, ImageTask, gravest
from serve_app.deployments.admission import Admission
from serve_app.deployments.deadline import Deadline
from serve_app.deployments.health import stage_health
from serve_app.deployments.image_metrics import recorded_image
from serve_app.deployments.model_table import ModelTable
from serve_app.deployments.segment_run import SegmentRun
from serve_app.deployments.stage_client import StageClient
from serve_app.deployments.watches import Watches

logger = logging.getLogger("aura.conductor")

_MAX_PROFILES = 3  # numeric profiles under which an image begins before it is given up


class Conductor:
    """The images of one ingress process, each taken through its stages by a call of `run`.

    Base and refiner are the same client where one replica runs both. The stages in
    `scale_to_zero` have no replica while they have no work: the first image waits until one starts.
    `on_conviction` lets the other processes know.
    """

    def __init__(
        self,
        base: StageClient,
        refiner: StageClient | None,
        models: Sequence[ModelInfo],
        meter: Meter | None = None,
        scale_to_zero: Collection[Stage] = (),
        refiner_name: str | None = None,
        limits: AdmissionLimits | None = None,
        on_conviction: Callable[[Conviction], None] = lambda conviction: None,
    ) -> None:
        self._stages = {Stage.BASE: base} | ({Stage.REFINER: refiner} if refiner else {})
        self._models = ModelTable(models)
        self._refiner_name = refiner_name
        self._meter = meter or InMemoryMeter()
        self._admission = Admission(self._stages, limits or AdmissionLimits(), self._meter)
        self._backlog = self._admission.backlog
        self._admitted: dict[str, ImageInFlight] = {}  # and not yet run
        self._scale_to_zero = scale_to_zero
        self._watches = Watches(self._stages)
        self._segment_run = SegmentRun(
            self._stages, self._admission, self._meter, self.default_timeout, self._watches
        )
        self._convictions = Convictions()
        self._on_conviction = on_conviction
        self._idle = asyncio.Event()

    def admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        """Admit the images of a job together; until the context ends, their work is owed.

        Raises `Draining`, `ModelNotFound`, `ImageKillsReplica`, `RateLimited`, `Overloaded`, or
        `DeadlineExceeded` for a deadline that even an idle service could not meet.
        """
        try:
            return self._admit(tasks)
        except AuraError:
            for task in tasks:
                refused, label = ImageOutcome.REFUSED, self._models.label(task.spec)
                self._meter.record(IMAGES, outcome=refused, model=label)
            raise

    def check_room(self, caller: Caller, spec: ImageSpec, deadline: float | None) -> None:
        """Raise `Draining` or `Overloaded` for a job that is refused whatever its images take."""
        has_refiner = Stage.REFINER in self._stages
        _, segments = plan_segments(self._models.find(spec).noise_config, spec, refiner=has_refiner)
        self._admission.check_room(caller, [segment.stage for segment in segments], deadline)

    def send_away(self, caller: Caller) -> int:
        """Book a request that is refused before its job is known; return its Retry-After."""
        return self._admission.send_away(caller)

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        """Make one image: stream its events, at last `Generated`. Closing the stream cancels it.

        A task that was not admitted before is admitted alone. Without a timeout of its own it may
        take `default_timeout()`, anew whenever a replica is lost: the loss of a machine without
        power may be noticed after a minute. A lost replica costs the steps since the last snapshot.
        Raises the named errors of `core.errors`.
        """
        with ExitStack() as contexts:
            if task.id not in self._admitted:
                contexts.enter_context(self.admit([task]))
            image = self._admitted.pop(task.id)
            label = self._models.label(task.spec)
            contexts.enter_context(recorded_image(self._meter, label, lambda: image.gpu_seconds))
            deadline = Deadline.of(task, self.default_timeout(image))
            try:
                async with aclosing(self._run_image(image, task, deadline)) as events:
                    async for event in events:
                        yield event
            except ImageKillsReplica:
                conviction = Conviction.of(
                    image.sample.spec,
                    task.inputs,
                    task.caller,
                    has_drawn_seed=task.has_drawn_seed,
                )
                self.convict(conviction)
                self._on_conviction(conviction)
                raise
            result = _result(image)
        yield Generated(result)

    def snapshot(self, id: str) -> ImageSnapshot | None:
        """Return an accepted image as of its last snapshot; None if there is no such image."""
        image = self._backlog.get(id)
        if image is None:
            return None
        return ImageSnapshot(image.sample, image.png, image.suspicion)

    def outlook(self, id: str) -> Outlook | None:
        """Return how far an image is, and when it will be done; None unless it is being made."""
        image = self._backlog.get(id)
        if image is None or image.png is not None:
            return None
        return self._admission.outlook(image)

    def watch(self, id: str, *, watched: bool) -> None:
        """Let an accepted image have previews and more frequent progress, or no longer."""
        if image := self._backlog.get(id):
            self._watches.set(image, watched=watched)

    async def health(self) -> Health:
        """Return whether an image could be made now, and by how many replicas that don't hang."""
        return await stage_health(
            self._stages, self._scale_to_zero, is_draining=self._admission.is_draining
        )

    def owed_seconds(self) -> float:
        """Return the predicted seconds until all that was accepted is done."""
        return self._admission.drain_seconds()

    def load(self) -> Mapping[str, Any]:
        """Return what was accepted here, in plain values for the other ingress processes."""
        return self._admission.load()

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """Take note of what each of the other ingress processes has accepted."""
        self._admission.update_others(loads)

    def convict(self, conviction: Conviction) -> None:
        """Refuse a convicted image, and a caller with too many of them, for a while."""
        self._convictions.add(conviction, self._now())

    async def demands(self) -> dict[Stage, Demand]:
        """Return what the images accepted here need from each stage.

        A replica may have measured a step before the first image has come back here, so the
        replicas of a stage without costs report theirs.
        """
        if self._backlog:
            for stage, client in self._stages.items():
                if not self._backlog.costs[stage].is_calibrated:
                    reported = [replica.engine.costs for replica in await client.stats()]
                    calibrated = (costs for costs in reported if costs.is_calibrated)
                    self._backlog.set_costs(stage, next(calibrated, CostTable()))
        return self._backlog.demands()

    def default_timeout(self, image: ImageInFlight) -> float:
        """Return the seconds that an image may take whose caller chose no timeout."""
        return self._backlog.default_timeout(
            image, several_models=len(self._models) > 1, cold_stages=len(self._scale_to_zero)
        )

    async def drain(self) -> None:
        """Refuse new images, and wait until all accepted ones have ended."""
        self._admission.is_draining = True
        while self._backlog:
            self._idle.clear()
            await self._idle.wait()

    def _admit(self, tasks: Sequence[ImageTask]) -> AbstractContextManager[object]:
        images = [self._image_of(task) for task in tasks]
        for image, task in zip(images, tasks, strict=True):
            self._convictions.check(
                image.sample.spec,
                task.inputs,
                task.caller,
                self._now(),
                has_drawn_seed=task.has_drawn_seed,
            )
        first, now = tasks[0], self._now()
        context = self._admission.admit(images, first.caller, first.deadline(now))
        for image in images:
            self._admitted[image.sample.id] = image
            context.callback(self._forget, image)
        return context

    def _image_of(self, task: ImageTask) -> ImageInFlight:
        """Return the task's image before its first step. Raises `ModelNotFound`."""
        model, has_refiner = self._models.find(task.spec), Stage.REFINER in self._stages
        spec = replace(task.spec, model=model.name, refiner=self._refiner_name)
        schedule, segments = plan_segments(model.noise_config, spec, refiner=has_refiner)
        sample: Sample[Any] = new_sample(
            task.id, spec, schedule, segments[0].stage, task.inputs, task.caller
        )
        return ImageInFlight(sample, segments)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _forget(self, image: ImageInFlight) -> None:
        """Take note that an image has ended, or will not be run."""
        self._admitted.pop(image.sample.id, None)
        self._backlog.remove(image)
        if not self._backlog:
            self._idle.set()

    async def _run_image(
        self, image: ImageInFlight, task: ImageTask, deadline: Deadline
    ) -> AsyncGenerator[StageEvent, None]:
        """Run all segments, until the deadline."""
        async with aclosing(deadline.enforce(self._run_segments(image, task, deadline))) as events:
            async for event in events:
                yield event

    async def _resume(self, image: ImageInFlight, task: ImageTask) -> None:
        """Let an image go on from the furthest snapshot that is known of it, if there is one."""
        known = [task.resume] if task.resume else []
        if task.is_retaken:
            for client in dict.fromkeys(self._stages.values()):
                known += await client.take(task.id)
        first = image.sample
        same = [found for found in known if found.sample.spec == first.spec]
        if same:
            furthest = max(same, key=lambda found: found.steps_done)
            image.sample = replace(furthest.sample, id=task.id, caller=task.caller)
            image.png = furthest.png
            image.suspicion = gravest(same)
            self._backlog.update(image)
            self._meter.record(IMAGES_RESUMED, reason=ResumeReason.RETAKEN)
            logger.info("%s goes on from step %d", task.id, image.sample.index)

    async def _run_segments(
        self, image: ImageInFlight, task: ImageTask, deadline: Deadline
    ) -> AsyncGenerator[StageEvent, None]:
        """Run what is left; all from the first step on if the numeric profile changes."""
        clock = asyncio.get_running_loop().time
        first = image.sample
        await self._resume(image, task)
        if image.png is not None:
            return
        for attempt in range(_MAX_PROFILES):
            if attempt:
                self._meter.record(IMAGES_RESUMED, reason=ResumeReason.PROFILE)
                image.sample = first
            try:
                for segment in segments_left(image.sample, image.segments):
                    started = clock()
                    image.sample = for_stage(image.sample, segment.stage)
                    run = self._segment_run.events(image, segment, deadline, task.confirm)
                    async with aclosing(run) as events:
                        async for event in events:
                            yield event
                    self._meter.record(STAGE_DURATION, clock() - started, stage=segment.stage)
                return
            except ProfileChanged as change:
                logger.warning("%s starts again: %s", first.id, change)
        raise ReplicaLost("the replicas' numeric profile changed again and again")


def _result(image: ImageInFlight) -> GeneratedImage:
    if image.png is None:
        raise EngineFault("the last stage returned no image")
    return GeneratedImage(image.png, stage_profiles(image.sample), image.sample.warnings)
