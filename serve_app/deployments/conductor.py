"""The conductor: walks one image through the stages, and holds what is needed to do it again.

Knows no HTTP, no Ray and no torch: stages are anything that keeps the `StageClient` contract.
It has an image's last snapshot, its deadline and its retries; nobody else needs them.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, cast

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.demand import Demand
from serve_app.core.capacity.forecast import amortized_seconds, forecast, pending_work
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.sample import (
    Sample,
    StageSegment,
    for_stage,
    new_sample,
    stage_segments,
)
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    DeadlineExceeded,
    Draining,
    EngineFault,
    ModelNotFound,
    Overloaded,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.service.events import GeneratedImage, ReplicaStats, Snapshot
from serve_app.core.service.info import Health, HealthStatus, ModelInfo
from serve_app.core.service.metrics import (
    RESUMES,
    STAGE_SECONDS,
    InMemoryMeter,
    Meter,
    ResumeReason,
)
from serve_app.deployments.image_metrics import counting_outcome

logger = logging.getLogger("aura.conductor")

_TIMEOUT_FACTOR = 4.0  # an image that takes so many times its predicted seconds is given up
_TIMEOUT_GRACE_S = 60.0  # seconds, on top
_MODEL_LOAD_S = 120.0  # seconds, for a model to be read from a slow disk and tried on its card
_MAX_LOSSES = 3  # replicas lost at the same step: then it is the image that kills them


class StageClient(Protocol):
    """One stage, wherever its replicas are."""

    def advance(self, sample: Sample[Any], segment: StageSegment) -> AsyncIterator[Any]:
        """`Snapshot`s and at last one `Arrived`; raises named errors; closing it cancels."""

    async def stats(self) -> list[ReplicaStats]:
        """What the stage's replicas are and have done; empty while none is ready."""


class Conductor:
    """The images of one ingress process, each walked by a call of `make`.

    Base and refiner are the same client where one replica runs both. Stages that rest have no
    replica while nobody needs one: their first image waits until it is there.
    """

    def __init__(
        self,
        base: StageClient,
        refiner: StageClient | None,
        models: Sequence[ModelInfo],
        meter: Meter | None = None,
        scale_to_zero: Collection[Stage] = (),
    ) -> None:
        self._stages = {Stage.BASE: base} | ({Stage.REFINER: refiner} if refiner else {})
        self._models = {"": models[0]} | {model.name: model for model in models}
        self._costs = {stage: CostTable() for stage in Stage}
        self._in_flight: dict[str, tuple[Sample[Any], tuple[StageSegment, ...]]] = {}
        self._arrived_totals = dict.fromkeys(Stage, 0.0)  # GPU seconds of all that was accepted
        self._meter = meter or InMemoryMeter()
        self._scale_to_zero = scale_to_zero
        self._draining = False
        self._idle = asyncio.Event()

    async def generate(
        self, id: str, spec: ImageSpec, init_image: bytes | None, timeout: float | None
    ) -> GeneratedImage:
        """One image.

        `timeout` is in seconds; None allows `patience`, anew whenever a replica is lost: that of a
        machine without power may be noticed after a minute. A replica that dies costs the steps
        since the last snapshot. Cancelling the call cancels the image. Raises the named errors of
        `core.errors`.
        """
        with counting_outcome(self._meter):
            return await self._generate(id, spec, init_image, timeout)

    async def _generate(
        self, id: str, spec: ImageSpec, source: bytes | None, timeout: float | None
    ) -> GeneratedImage:
        if self._draining:
            raise Draining("the service is shutting down and takes nothing new")
        model = self._models.get(spec.model)
        if model is None:
            raise ModelNotFound(f"there is {', '.join(name for name in self._models if name)}")
        spec = replace(spec, model=model.name)
        schedule = make_schedule(
            model.noise_config, spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        legs = stage_segments(schedule, spec.handoff, refiner=Stage.REFINER in self._stages)
        sample: Sample[Any] = new_sample(id, spec, schedule, legs[0].stage, ImageInputs(source))
        self._in_flight[id] = (sample, legs)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            if timeout is not None:
                await self._admit(id, timeout)
            self._record_demand(sample, legs)
            allowed = self.default_timeout() if timeout is None else timeout
            async with asyncio.timeout(allowed) as limit:

                def lost() -> None:
                    """The time in which nobody saw that the replica was gone is not the image's."""
                    nonlocal allowed
                    if timeout is None:
                        allowed = clock() - began + self.default_timeout()
                        limit.reschedule(began + allowed)

                return await self._run_segments(sample, legs, lost)
        except TimeoutError:
            raise DeadlineExceeded(f"the image was not ready within {allowed:.0f} s") from None
        finally:
            del self._in_flight[id]
            if not self._in_flight:
                self._idle.set()

    async def health(self) -> Health:
        """Whether an image could be made now, and by how many replicas."""
        names: dict[StageClient, list[str]] = {}  # one client may be both stages
        for stage, client in self._stages.items():
            names.setdefault(client, []).append(str(stage))
        answers = await asyncio.gather(*(client.stats() for client in names))
        told = [(called, facts) for called, facts in zip(names.values(), answers, strict=True)]
        replicas = {name: len(facts) for called, facts in told for name in called}
        owed = sum(replica.owed_seconds for _, facts in told for replica in facts)
        short = dict.fromkeys(
            f"{' and '.join(called)}: {replica.shortfall}"
            for called, facts in told
            for replica in facts
            if replica.shortfall
        )
        missing = [
            name for name, n in replicas.items() if not n and name not in self._scale_to_zero
        ]
        if self._draining:
            return Health(HealthStatus.DRAINING, "the service is shutting down", replicas, owed)
        if missing:
            reason = f"no replica of {' and '.join(missing)} is ready yet"
            return Health(HealthStatus.LOADING, reason, replicas, owed)
        return Health(HealthStatus.READY, "", replicas, owed, tuple(short))

    def owed_seconds(self) -> float:
        """Predicted seconds of work that the images under way here still need."""
        return self._seconds(*self._in_flight)

    async def demands(self) -> dict[Stage, Demand]:
        """What is wanted of each stage by all that was accepted here.

        Seconds are 0 while nobody knows what a step takes there: the images say that it is needed.
        A replica may know it before an image has come back here.
        """
        if self._in_flight:
            for stage, client in self._stages.items():
                if not self._costs[stage].is_calibrated:
                    known = (facts.costs for facts in await client.stats())
                    self._costs[stage] = next(
                        (one for one in known if one.is_calibrated), CostTable()
                    )
        demands = {
            stage: Demand(arrived_total=self._arrived_totals[stage]) for stage in self._stages
        }
        for way in self._in_flight.values():
            for ahead, owed in enumerate(pending_work(*way)):
                stage, prices = owed.segment.stage, self._costs[owed.segment.stage]
                seconds = amortized_seconds([owed], prices) if prices.is_calibrated else 0.0
                demands[stage] += Demand(1, seconds, seconds if ahead else 0.0)
        return demands

    def default_timeout(self) -> float:
        """Seconds that an image may take whose caller sets no time: four times what is predicted of
        the work under way, a minute, and two for each model that it may have to wait for.

        Of several models each may have to be loaded before this image's turn comes, its own too.
        Who is in memory now is not asked: it may have to leave before then.
        """
        loads = 0
        if len(set(self._models.values())) > 1:
            ways = self._in_flight.values()
            loads = len({s.spec.model for s, legs in ways if legs[0].stage is Stage.BASE})
        loads += len(self._scale_to_zero)
        return _TIMEOUT_FACTOR * self.owed_seconds() + _TIMEOUT_GRACE_S + _MODEL_LOAD_S * loads

    async def drain(self) -> None:
        """Nothing new is taken, and everything that was accepted has ended."""
        self._draining = True
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def _admit(self, id: str, timeout: float) -> None:
        """Returns when the image may be ready in time; raises `Overloaded` when it surely won't.

        Ahead of it go the images under way here that have fewer steps left: the engines' order.
        """
        if not all(self._costs[stage].is_calibrated for stage in self._stages):
            return
        mine = self._steps_left(id)
        ahead = self._seconds(
            *(other for other in self._in_flight if self._steps_left(other) < mine)
        )
        if ahead + self._seconds(id) <= timeout:
            return
        replicas = (await self.health()).replicas
        needed = ahead / max(1, *replicas.values()) + self._seconds(id)
        if needed > timeout:
            raise Overloaded(
                f"the image would take about {needed:.0f} s, and {timeout:g} s are allowed"
            )

    def _record_demand(self, sample: Sample[Any], legs: tuple[StageSegment, ...]) -> None:
        """It was accepted, and will cost each of its stages what it costs among others."""
        for owed in pending_work(sample, legs):
            prices = self._costs[owed.segment.stage]
            if prices.is_calibrated:
                self._arrived_totals[owed.segment.stage] += amortized_seconds([owed], prices)

    def _steps_left(self, id: str) -> int:
        sample, _ = self._in_flight[id]
        return len(sample.schedule) - sample.index

    def _seconds(self, *ids: str) -> float:
        """GPU seconds that these images still need, together where they can."""
        owed = [one for id in ids for one in pending_work(*self._in_flight[id])]
        return sum(
            forecast([one for one in owed if one.segment.stage is stage], prices).seconds
            for stage, prices in self._costs.items()
        )

    async def _run_segments(
        self, first: Sample[Any], legs: tuple[StageSegment, ...], lost: Callable[[], None]
    ) -> GeneratedImage:
        clock = asyncio.get_running_loop().time
        for before in range(_MAX_LOSSES):
            if before:
                self._meter.record(RESUMES, reason=ResumeReason.PROFILE)
            sample, png = first, None
            profiles = []
            try:
                for leg in legs:
                    began = clock()
                    sample, png = await self._run_segment(
                        for_stage(sample, leg.stage), leg, legs, lost
                    )
                    self._meter.record(STAGE_SECONDS, clock() - began, stage=leg.stage)
                    profiles.append((leg.stage, sample.profile or ""))
            except ProfileChanged as change:
                logger.warning("%s starts again: %s", first.id, change)
                continue
            if png is None:
                raise EngineFault("the last stage gave no picture")
            return GeneratedImage(png, tuple(profiles), sample.warnings)
        raise ReplicaLost("the replicas' numeric profile changed again and again")

    async def _run_segment(
        self,
        sample: Sample[Any],
        leg: StageSegment,
        legs: tuple[StageSegment, ...],
        lost: Callable[[], None],
    ) -> tuple[Sample[Any], bytes | None]:
        """One leg, on as many replicas as it takes. Each loss costs the steps since a snapshot, and
        `lost` is told."""
        client, losses = self._stages[leg.stage], 0
        while True:
            self._in_flight[sample.id] = (sample, legs)
            stream = cast("AsyncGenerator[Any, None]", client.advance(sample, leg))
            try:
                async with aclosing(stream) as events:
                    async for event in events:
                        if isinstance(event, Snapshot):
                            sample, losses = event.sample, 0
                            self._in_flight[sample.id] = (sample, legs)
                        else:
                            self._costs[leg.stage] = event.costs
                            return event.sample, event.png
                raise EngineFault(f"the {leg.stage} stage ended without a result")
            except ReplicaLost as loss:
                losses += 1
                if losses >= _MAX_LOSSES:
                    raise
                lost()
                self._meter.record(RESUMES, reason=ResumeReason.LOST)
                logger.warning(
                    "%s: %s; continuing at step %d of %d",
                    sample.id,
                    loss,
                    sample.index,
                    leg.stop,
                )
