"""Serve's router with our decision in it: real, on replicas that only say how many they have."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.fleet import ReplicaReport, key_of
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind
from serve_app.deployments.router import OwedWorkRouter
from tests.support.ray_private import (
    DeploymentHandleSource,
    DeploymentID,
    RequestMetadata,
    choose_replica,
    stop_routing,
)

STAGE = DeploymentID("BaseGenerator", "aura")
PRICES = CostTable(
    {TurnKind(WorkKind.STEP, ModelKey(Stage.BASE), 1024, 1024, 8): 0.1},
    {ModelKey(Stage.BASE): BatchSize(4, 8)},
)
SOON = 5.0  # seconds, in which what must happen happens


class Counting:
    """A replica as routers see it: how many requests it has, and what it reported."""

    def __init__(
        self, name: str, *owed: PendingWork[Any], most: int = 100, requests: int = 0
    ) -> None:
        self.replica_id = ReplicaID(name, STAGE)
        self.max_ongoing_requests = most
        self.routing_stats = ReplicaReport.of(
            1, "p", owed, [ModelKey(Stage.BASE)], PRICES
        ).to_wire()
        self.requests = requests  # of whomever

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.requests


class Ending:
    """A request's result, as far as a router sees it."""

    def __init__(self) -> None:
        self._done: list[Any] = []

    def add_done_callback(self, done: Any) -> None:
        self._done.append(done)

    def end(self) -> None:
        for done in self._done:
            done(self)


def owed(id: str, steps: int) -> PendingWork[Any]:
    sample, leg = wish(id, steps)
    return PendingWork(sample, leg, WorkKind.STEP, due=0)


def wish(id: str, steps: int, width: int = 1024) -> tuple[Sample[Any], StageSegment]:
    spec = ImageSpec(prompt="a", seed=1, width=width, height=1024, steps=steps, guidance=6.9)
    noise = NoiseConfig.from_scheduler_config({})
    schedule = make_schedule(noise, spec.sampler, steps, None, 1.0)
    return new_sample(id, spec, schedule, Stage.BASE), StageSegment(Stage.BASE, steps, last=True)


def request(*args: Any, at: float = 0.0) -> PendingRequest:
    meta = RequestMetadata(request_id="r", internal_request_id="of all", call_method="advance")
    return PendingRequest(args=list(args), kwargs={}, metadata=meta, created_at=at)


@asynccontextmanager
async def routing(*replicas: Counting) -> AsyncIterator[OwedWorkRouter]:
    router = OwedWorkRouter(STAGE, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state()
    router.update_replicas(cast("list[RunningReplica]", list(replicas)))
    yield router
    stop_routing(router)


async def routed(router: OwedWorkRouter, asked: PendingRequest) -> str:
    replica = await asyncio.wait_for(choose_replica(router, asked), SOON)
    return replica.replica_id.unique_id


async def test_an_image_goes_past_the_replica_that_owes_more() -> None:
    async with routing(Counting("busy", owed("x", 150)), Counting("less", owed("y", 20))) as router:
        assert await routed(router, request(*wish("new", 30, width=832))) == "less"


async def test_images_of_one_request_run_on_all_replicas() -> None:
    async with routing(Counting("a"), Counting("b"), Counting("c")) as router:
        asked = [request(*wish(str(number), 30)) for number in range(3)]
        homes = await asyncio.gather(*(routed(router, one) for one in asked))
        assert sorted(homes) == ["a", "b", "c"]


async def test_the_next_place_is_the_most_urgent_ones() -> None:
    async with routing(Counting("a", most=1)) as router:
        first = request(*wish("first", 30))
        assert await routed(router, first) == "a"
        ending = Ending()
        router.on_request_routed(first, ReplicaID("a", STAGE), ending)
        order: list[str] = []

        async def wait(id: str, steps: int) -> None:
            await routed(router, request(*wish(id, steps)))
            order.append(id)
            router._end("a", key_of(wish(id, steps)[0]))

        waiting = [asyncio.create_task(wait(id, s)) for id, s in (("long", 150), ("draft", 4))]
        await asyncio.sleep(0.05)
        assert order == []
        ending.end()
        await asyncio.wait_for(asyncio.gather(*waiting), SOON)
        assert order == ["draft", "long"]


async def test_who_gives_up_waiting_takes_no_place() -> None:
    async with routing(Counting("a", most=1)) as router:
        assert await routed(router, request(*wish("first", 30))) == "a"
        asked = request(*wish("gone", 4))
        waiting = asyncio.create_task(routed(router, asked))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        router._end("a", key_of(wish("first", 30)[0]))
        assert await routed(router, request(*wish("next", 30))) == "a"


async def test_what_is_no_image_goes_to_any_replica() -> None:
    async with routing(Counting("a", owed("x", 150))) as router:
        assert await routed(router, request()) == "a"


async def test_an_image_waits_for_a_replica_where_there_is_none() -> None:
    async with routing() as router:
        waiting = asyncio.create_task(routed(router, request(*wish("early", 30))))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        router.update_replicas(cast("list[RunningReplica]", [Counting("a")]))
        assert await waiting == "a"


async def test_a_replica_that_others_have_filled_is_passed_by() -> None:
    full, busy = Counting("full", most=4, requests=4), Counting("busy", owed("x", 150), most=4)
    async with routing(full, busy) as router:
        assert await routed(router, request(*wish("new", 30))) == "busy"
        full.requests = 0
        assert await routed(router, request(*wish("next", 30))) == "full"


async def test_a_refused_image_finds_another_place() -> None:
    async with routing(Counting("a"), Counting("b")) as router:
        asked = request(*wish("image", 30))
        first = await routed(router, asked)
        for replica in router.curr_replicas.values():  # which is full by its own account
            if replica.replica_id.unique_id == first:
                router._replica_queue_len_cache.update(replica.replica_id, 100)
                cast("Any", replica).requests = 100
        again = await asyncio.wait_for(choose_replica(router, asked, is_retry=True), SOON)
        assert again.replica_id.unique_id != first


async def test_newcomers_take_those_that_wait_as_many_as_they_have_places_for() -> None:
    async with routing(Counting("a", most=4)) as router:
        asked = [request(*wish(str(number), 30)) for number in range(40)]
        waiting = [asyncio.create_task(routed(router, one)) for one in asked]
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in waiting) == 4
        began = asyncio.get_running_loop().time()
        there = [*router.curr_replicas.values(), Counting("b", most=12), Counting("c", most=12)]
        router.update_replicas(cast("list[RunningReplica]", there))
        while sum(task.done() for task in waiting) < 12:
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began < 1.0
        await asyncio.sleep(0.3)
        homes = Counter(task.result() for task in waiting if task.done())
        assert homes == {"a": 4, "b": 4, "c": 4}  # the least that anybody takes bounds all
        for task in waiting:
            task.cancel()


async def test_who_waits_while_all_replicas_go_has_the_first_that_comes() -> None:
    async with routing(Counting("a", most=1)) as router:
        assert await routed(router, request(*wish("first", 30))) == "a"
        waiting = asyncio.create_task(routed(router, request(*wish("next", 30))))
        await asyncio.sleep(0.05)
        router.update_replicas([])
        await asyncio.sleep(0.3)
        assert not waiting.done()
        router.update_replicas(cast("list[RunningReplica]", [Counting("b")]))
        assert await asyncio.wait_for(waiting, SOON) == "b"


async def test_a_report_that_nobody_understands_costs_no_request() -> None:
    strange = Counting("strange")
    strange.routing_stats = {"number": 5, "version": 2}
    async with routing(strange, Counting("a", owed("x", 150))) as router:
        assert await routed(router, request(*wish("new", 30, width=832))) == "strange"
        assert await routed(router, request(*wish("next", 30, width=832))) in {"a", "strange"}
