"""`Admission`: jobs at the door of one ingress process are admitted, or refused with a named error.

The decision is core's. Here are the clock, the replicas as their stages last reported them, and
what the other ingress processes have. No HTTP and no Ray.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import Context
from dataclasses import replace
from typing import Any, NoReturn

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import AdmissionLimits, Decision, Refusal
from serve_app.core.capacity.admission_control import (
    EXCHANGE_INTERVAL_S,
    AdmissionControl,
    StageCapacity,
    Verdict,
)
from serve_app.core.capacity.forecast import load_seconds
from serve_app.core.capacity.ingress_load import IngressLoad
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    AuraError,
    DeadlineExceeded,
    DeadlineImpossible,
    Draining,
    Overloaded,
)
from serve_app.core.service.backlog import Backlog, ImageInFlight
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.metrics import (
    QUEUE_LIMIT_SECONDS,
    QUEUE_SECONDS,
    REQUESTS_ADMITTED,
    REQUESTS_REFUSED,
    Meter,
)
from serve_app.core.service.outlook import Outlook
from serve_app.deployments.stage_client import StageClient

_LINGER_S = 0.25  # seconds in which a short request is done


class Admission:
    """The jobs that one ingress process has admitted, and how much room there is for more."""

    def __init__(
        self, stages: Mapping[Stage, StageClient], limits: AdmissionLimits, meter: Meter
    ) -> None:
        self._clients: dict[Stage, StageClient] = {}  # by pool: the first stage of each client
        pools: dict[Stage, Stage] = {}
        for stage, client in stages.items():
            known = (pool for pool, other in self._clients.items() if other is client)
            pools[stage] = pool = next(known, stage)
            self._clients[pool] = client
        self._pools = pools
        self._control = AdmissionControl(tuple(self._clients), limits)
        self.backlog = Backlog(pools, self._control.owed)
        self.is_draining = False  # and takes no new jobs
        self._meter = meter
        self._replicas: dict[Stage, int] = {}
        self._models: dict[Stage, frozenset[ModelKey]] = {}  # that some replica has in memory
        self._watching: asyncio.Task[None] | None = None

    def admit(
        self, images: Sequence[ImageInFlight], caller: Caller, deadline: float | None
    ) -> ExitStack:
        """Count a job as accepted until the context ends that is returned, and its images.

        The images stay in the backlog until they are removed. Raises `Draining`, `Overloaded` or
        `DeadlineExceeded`, for the whole job.
        """
        self._check_draining()
        now = asyncio.get_running_loop().time()
        self._watch()
        for image in images:
            image.due = now + self.backlog.batched_seconds(image)
        due = max(image.due for image in images)
        works = self.backlog.works(images)
        capacities = {pool: self._capacity(pool, images) for pool in self._clients}
        loading = self._load_seconds(images[0])
        verdict = self._control.judge(caller, works, due, deadline, capacities, now, loading)
        if verdict.refusal is not None:
            self._raise_refusal(verdict, deadline, now)
        self._meter.record(REQUESTS_ADMITTED)
        self._control.begin_job(caller)
        context = ExitStack()
        context.callback(self._control.end_job, caller)
        for image in images:
            self.backlog.add(image)
        return context

    def seconds_from_turn(self, image: ImageInFlight) -> float:
        """Return the seconds that an accepted image takes when it no longer waits, 0 if unknown."""
        works = self.backlog.works([image])
        capacities = {pool: self._capacity(pool, [image]) for pool in self._clients}
        return self._control.seconds_from_turn(works, capacities, asyncio.get_running_loop().time())

    def outlook(self, image: ImageInFlight) -> Outlook:
        """Return how far an accepted image is, and when it will be done if costs are known."""
        now, sample = asyncio.get_running_loop().time(), image.sample
        if image.index is not None:
            sample = replace(sample, index=image.index)
        outlook = Outlook(sample.stage, sample.step, sample.spec.running_steps)
        factor = image.pace.factor if self.backlog.has_costs(image) else None
        if image.index is not None and factor is not None:
            since, left = image.pace.since(now), self.backlog.time_left(image)
            return replace(outlook, wait=0.0, eta=left.at_pace(factor, since))
        outlook = replace(outlook, position=self.backlog.position(image))
        works = self.backlog.works([image])
        if not works:
            return outlook
        capacities = {pool: self._capacity(pool, [image]) for pool in self._clients}
        wait, eta = self._control.expected_seconds(sample.caller, works, image.due, capacities, now)
        if image.index is not None:
            wait, eta = 0.0, eta - wait
        return replace(outlook, wait=wait, eta=eta)

    def check_room(self, caller: Caller, stages: Iterable[Stage], deadline: float | None) -> None:
        """Return unless a job of the caller that passes the stages would be refused in any case.

        Raises `Draining` or `Overloaded`. What passes may still be refused by `admit`.
        """
        self._check_draining()
        now = asyncio.get_running_loop().time()
        known = stages if self.backlog.is_calibrated else ()
        pools = list(dict.fromkeys(self._pools[stage] for stage in known))
        verdict = self._control.preview(caller, pools, deadline, self._capacities(), now)
        if verdict.refusal is not None:
            self._raise_refusal(verdict, deadline, now)

    def send_away(self, caller: Caller) -> int:
        """Book a request that is refused before its job is known; return its Retry-After."""
        now = asyncio.get_running_loop().time()
        return self._control.send_away(caller, self._capacities(), now)

    def drain_seconds(self) -> float:
        """Return the predicted seconds until everything that was admitted is done."""
        now = asyncio.get_running_loop().time()
        return self._control.drain_seconds(self._capacities(), now)

    def load(self) -> dict[str, Any]:
        """Return what was admitted here, in plain values for the other ingress processes."""
        return self._control.load(asyncio.get_running_loop().time()).to_wire()

    def update_others(self, loads: Sequence[Mapping[str, Any]]) -> None:
        """Take note of what each of the other ingress processes has admitted."""
        known = [load for wire in loads if (load := IngressLoad.from_wire(wire)) is not None]
        self._control.update_others(known, asyncio.get_running_loop().time())

    def update_replicas(self, pool: Stage, stats: Sequence[ReplicaStats]) -> None:
        """Take note of the replicas that answered, and of their costs while none are known.

        That none answers says little: they may be busy, or about to be replaced.
        """
        stats = [replica for replica in stats if not replica.is_hanging]
        if not stats:
            return
        self._replicas[pool] = len(stats)
        self._models[pool] = frozenset(key for replica in stats for key in replica.engine.models)
        costs = next(
            (replica.engine.costs for replica in stats if replica.engine.costs.is_calibrated), None
        )
        for stage, its_pool in self._pools.items():
            if costs and its_pool is pool and not self.backlog.costs[stage].is_calibrated:
                self.backlog.set_costs(stage, costs)

    def _watch(self) -> None:
        """Keep the number of replicas up to date while there are jobs."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch_replicas(), context=Context())

    async def _watch_replicas(self) -> None:
        """Ask the replicas while there are jobs.

        The first round lingers where replicas are known, so that a job's own calls go first.
        """
        if len(self._replicas) == len(self._clients):
            await asyncio.sleep(_LINGER_S)
        while True:
            for pool, client in self._clients.items():
                self.update_replicas(pool, await client.stats())
            self._meter.record(QUEUE_SECONDS, self.drain_seconds())
            self._meter.record(QUEUE_LIMIT_SECONDS, self._control.limits.queue_seconds)
            if not self._control.jobs:
                return
            await asyncio.sleep(EXCHANGE_INTERVAL_S)

    def _check_draining(self) -> None:
        if self.is_draining:
            raise Draining("the service is shutting down and takes no new images")

    def _raise_refusal(self, verdict: Verdict, deadline: float | None, now: float) -> NoReturn:
        assert verdict.refusal is not None
        self._meter.record(REQUESTS_REFUSED, reason=verdict.refusal)
        left = 0.0 if deadline is None else deadline - now
        raise _error(verdict.refusal, verdict.decision, left, verdict.retry_after)

    def _load_seconds(self, image: ImageInFlight) -> float:
        """Return the seconds of loading the image's models, where no replica has or loads them.

        The replicas are as they answered last, which was when this process last had a job.
        """
        seconds = 0.0
        for segment in image.segments:
            sample = replace(image.sample, stage=segment.stage)
            key, models = sample.model_key, self._models.get(self._pools[segment.stage])
            if models is not None and key not in models and key not in self.backlog.model_keys:
                seconds += load_seconds(sample, self.backlog.costs[segment.stage])
        return seconds

    def _capacities(self) -> dict[Stage, StageCapacity]:
        """Return the replicas of each pool, at their best: for a job whose model is unknown."""
        return {
            pool: StageCapacity(
                self._replicas.get(pool, 1), self.backlog.costs[pool].max_batch_images
            )
            for pool in self._clients
        }

    def _capacity(self, pool: Stage, images: Sequence[ImageInFlight]) -> StageCapacity:
        model = replace(images[0].sample, stage=pool).model_key
        return StageCapacity(
            self._replicas.get(pool, 1),
            self.backlog.costs[pool].batch_size(model).images,
            self.backlog.load_seconds(images) if pool is Stage.BASE else 0.0,
        )


def _error(refusal: Refusal, decision: Decision, left: float, retry_after: int) -> AuraError:
    """Return what a refused caller is told; `left` are the seconds until the deadline."""
    needed = decision.wait + decision.own
    match refusal:
        case Refusal.IMPOSSIBLE:
            return DeadlineImpossible(
                f"the image takes about {decision.alone:.1f} s even alone, and "
                f"{max(0.0, left):.1f} s are left",
                remedy="Allow more time, or fewer steps",
            )
        case Refusal.LOADING:
            return DeadlineExceeded(
                f"the image takes about {decision.alone:.0f} s, since its model has to be loaded "
                f"first, and {left:.0f} s are left",
                remedy="Allow more time",
            )
        case Refusal.DEADLINE:
            problem = f"the image would take about {needed:.0f} s, and {left:.0f} s are left"
        case Refusal.QUEUE:
            problem = f"the queue is full: others' work takes about {decision.others:.0f} s"
        case Refusal.OPEN_REQUESTS:
            problem = "as many requests are open as may be, in all or of one caller"
    return Overloaded(problem, retry_after=retry_after)
