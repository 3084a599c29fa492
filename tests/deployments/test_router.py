"""Serve's router with our dispatcher in it: real, on replicas that only count their requests."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any, cast

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.replica_report import key_of
from serve_app.core.diffusion.sample import Sample
from serve_app.deployments.router import OwedWorkRouter
from tests.support.images import image, report_of, segment_of
from tests.support.ray_private import (
    DeploymentHandleSource,
    DeploymentID,
    RequestMetadata,
    choose_replica,
    stop_routing,
)
from tests.support.waiting import until_async

STAGE = DeploymentID("BaseGenerator", "aura")
TIMEOUT = 10.0  # seconds, for what must happen
REQUEST_NUMBERS = count()


class CountingReplica:
    """A replica as routers see it: how many requests it has, and what it reported."""

    def __init__(
        self, name: str, *images: Sample[Any], max_requests: int = 100, requests: int = 0
    ) -> None:
        self.replica_id = ReplicaID(name, STAGE)
        self.max_ongoing_requests = max_requests
        self.routing_stats = report_of(1, *images).to_wire()
        self.requests = requests  # of all routers

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.requests


class Response:
    """A replica's response, as far as a router sees it."""

    def __init__(self) -> None:
        self._callbacks: list[Any] = []

    def add_done_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


def request(*args: Any, number: str | None = None) -> PendingRequest:
    number = number or str(next(REQUEST_NUMBERS))
    metadata = RequestMetadata(request_id=number, internal_request_id=number, call_method="advance")
    return PendingRequest(args=list(args), kwargs={}, metadata=metadata, created_at=0.0)


def image_request(
    id: str, steps: int = 30, width: int = 1024, caller: Caller = NO_CALLER
) -> PendingRequest:
    sample = image(id, steps, width=width, caller=caller)
    return request(sample, segment_of(sample))


def replicas(*doubles: CountingReplica) -> list[RunningReplica]:
    return cast("list[RunningReplica]", list(doubles))


@asynccontextmanager
async def routing(*doubles: CountingReplica) -> AsyncIterator[OwedWorkRouter]:
    router = OwedWorkRouter(STAGE, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state(sender="")  # which of equal replicas is first is known
    router.update_replicas(replicas(*doubles))
    yield router
    stop_routing(router)


async def route(router: OwedWorkRouter, pending: PendingRequest, *, is_retry: bool = False) -> str:
    chosen = choose_replica(router, pending, is_retry=is_retry)
    replica = await asyncio.wait_for(chosen, TIMEOUT)
    return replica.replica_id.unique_id


def waiting_images(router: OwedWorkRouter) -> int:
    """Return how many images wait for a place."""
    return len(router._dispatcher.waiting)


async def start_waiting(
    router: OwedWorkRouter, *pending: PendingRequest
) -> list[asyncio.Task[str]]:
    """Start to route requests, and return when all wait."""
    already_waiting = waiting_images(router)
    tasks = [asyncio.create_task(route(router, request)) for request in pending]
    await until_async(lambda: waiting_images(router) == already_waiting + len(pending))
    return tasks


async def occupy(router: OwedWorkRouter, id: str = "first") -> Response:
    """Send an image, and return its response, which has not ended."""
    pending, response = image_request(id), Response()
    replica = await route(router, pending)
    router.on_request_routed(pending, ReplicaID(replica, STAGE), response)
    return response


async def test_an_image_goes_past_the_replica_that_owes_more() -> None:
    busy, less_busy = CountingReplica("busy", image("x", 150)), CountingReplica("less", image("y"))
    async with routing(busy, less_busy) as router:
        assert await route(router, image_request("new", width=832)) == "less"


async def test_images_of_one_request_run_on_all_replicas() -> None:
    async with routing(*map(CountingReplica, "abc")) as router:
        pending = [image_request(str(number)) for number in range(3)]
        chosen = await asyncio.gather(*(route(router, request) for request in pending))
        assert sorted(chosen) == ["a", "b", "c"]


async def test_images_of_one_http_request_share_its_id_and_all_get_a_replica() -> None:
    async with routing(*map(CountingReplica, "ab")) as router:
        samples = [image(str(number)) for number in range(6)]
        pending = [request(sample, segment_of(sample), number="shared") for sample in samples]
        chosen = await asyncio.gather(*(route(router, request) for request in pending))
        assert sorted(chosen) == ["a", "a", "a", "b", "b", "b"]
        assert waiting_images(router) == 0


async def test_images_that_overtook_a_long_one_leave_serves_queue() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        response = await occupy(router)
        (long,) = await start_waiting(router, image_request("long", 150))
        for number in range(3):
            draft = image_request(f"draft {number}", 4)
            (task,) = await start_waiting(router, draft)
            response.end()
            await asyncio.wait_for(task, TIMEOUT)
            response = Response()
            router.on_request_routed(draft, ReplicaID("a", STAGE), response)
        assert (waiting_images(router), router.num_pending_requests) == (1, 1)
        response.end()
        assert await asyncio.wait_for(long, TIMEOUT) == "a"


async def test_the_most_urgent_image_gets_the_next_place() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        response, order = await occupy(router), list[str]()

        async def wait(id: str, steps: int) -> None:
            await route(router, image_request(id, steps))
            order.append(id)
            router._end("a", key_of(image(id)))

        tasks = [asyncio.create_task(wait(id, n)) for id, n in (("long", 150), ("draft", 4))]
        await until_async(lambda: waiting_images(router) == 2)
        assert order == []
        response.end()
        await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT)
        assert order == ["draft", "long"]


async def test_an_image_whose_caller_has_gone_takes_no_place() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        response = await occupy(router)
        (task,) = await start_waiting(router, image_request("draft", 4))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert waiting_images(router) == 0
        response.end()
        assert await route(router, image_request("next")) == "a"


async def test_a_cancelled_image_is_passed_over_before_its_caller_has_run() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        await occupy(router)
        draft = image_request("draft", 4)
        tasks = await start_waiting(router, draft, image_request("patient", 150))
        draft.future.cancel()
        router._end("a", key_of(image("first")))
        assignment = router._next_assignment()
        assert assignment is not None
        assert assignment.image.sample.id == "patient"
        assert await asyncio.wait_for(tasks[1], TIMEOUT) == "a"


async def test_an_image_of_another_caller_does_not_wait_behind_a_flood() -> None:
    async with routing(CountingReplica("a")) as router:
        flood = [image_request(f"flood {number}", caller=Caller("a")) for number in range(20)]
        tasks = [asyncio.create_task(route(router, request)) for request in flood]
        await until_async(lambda: sum(task.done() for task in tasks) == 12)
        assert waiting_images(router) == 8
        assert await route(router, image_request("other", caller=Caller("b"))) == "a"
        assert waiting_images(router) == 8
        for task in tasks:
            task.cancel()


async def test_what_replicas_have_measured_decides_whose_turn_it_is() -> None:
    double = CountingReplica("a", max_requests=1)
    async with routing(double) as router:
        response = await occupy(router)
        alice, bob = Caller("alice"), Caller("bob")
        tasks = await start_waiting(
            router, image_request("first", caller=alice), image_request("second", caller=bob)
        )
        double.routing_stats = report_of(2, measured={alice: 9.0}).to_wire()
        response.end()
        assert await asyncio.wait_for(tasks[1], TIMEOUT) == "a"
        assert not tasks[0].done()
        tasks[0].cancel()


@pytest.mark.parametrize("again", [("a",), ("a", "b")], ids=["it dies", "another is silent"])
async def test_a_silence_makes_a_replica_suspect_only_until_it_reports(
    again: tuple[str, ...],
) -> None:
    doubles = [CountingReplica(id) for id in "abc"]
    async with routing(*doubles) as router:
        sample = image("x", 150)
        first = request(sample, replace(segment_of(sample), avoid=("a",)))
        assert await route(router, first) == "b"
        doubles[0].routing_stats = report_of(2).to_wire()
        second = request(sample, replace(segment_of(sample), avoid=again))
        assert await route(router, second) == "c"
        others = [await route(router, image_request(f"y{number}")) for number in range(2)]
        assert others[0] == "a"
        assert others[1] == ("b" if again == ("a",) else "a")


async def test_a_request_that_is_no_image_goes_to_any_replica() -> None:
    async with routing(CountingReplica("a", image("x", 150))) as router:
        assert await route(router, request()) == "a"


async def test_a_request_that_is_no_image_does_not_wait_for_a_place() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        await occupy(router)
        (task,) = await start_waiting(router, image_request("waiting"))
        assert await route(router, request()) == "a"
        assert not task.done()
        task.cancel()


async def test_an_image_waits_until_there_is_a_replica() -> None:
    async with routing() as router:
        (task,) = await start_waiting(router, image_request("early"))
        router.update_replicas(replicas(CountingReplica("a")))
        assert await task == "a"


async def test_a_replica_that_other_routers_have_filled_is_passed_over() -> None:
    full = CountingReplica("full", max_requests=4, requests=4)
    busy = CountingReplica("busy", image("x", 150), max_requests=4)
    async with routing(full, busy) as router:
        assert await route(router, image_request("new")) == "busy"
        full.requests = 0
        assert await route(router, image_request("next")) == "full"


async def test_an_image_that_a_replica_rejects_finds_another_place() -> None:
    doubles = [CountingReplica("a"), CountingReplica("b")]
    async with routing(*doubles) as router:
        pending = image_request("image")
        first = await route(router, pending)
        for double in doubles:
            if double.replica_id.unique_id == first:  # it is full by its own count
                router.replica_queue_len_cache.update(double.replica_id, 100)
                double.requests = 100
        assert await route(router, pending, is_retry=True) != first


async def test_new_replicas_take_as_many_waiting_images_as_they_have_places_for() -> None:
    first = CountingReplica("a", max_requests=4)
    async with routing(first) as router:
        pending = [image_request(str(number)) for number in range(40)]
        tasks = [asyncio.create_task(route(router, request)) for request in pending]
        await until_async(lambda: sum(task.done() for task in tasks) == 4)
        assert waiting_images(router) == 36
        # The smallest limit of any replica holds for all.
        newcomers = [CountingReplica(name, max_requests=12) for name in "bc"]
        router.update_replicas(replicas(first, *newcomers))
        await until_async(lambda: sum(task.done() for task in tasks) == 12)
        assert waiting_images(router) == 28
        assert router._next_assignment() is None
        chosen = Counter(task.result() for task in tasks if task.done())
        assert chosen == {"a": 4, "b": 4, "c": 4}
        for task in tasks:
            task.cancel()


async def test_an_image_that_waits_while_all_replicas_leave_gets_the_first_new_one() -> None:
    async with routing(CountingReplica("a", max_requests=1)) as router:
        await occupy(router)
        (task,) = await start_waiting(router, image_request("next"))
        router.update_replicas([])
        assert router._next_assignment() is None
        router.update_replicas(replicas(CountingReplica("b")))
        assert await asyncio.wait_for(task, TIMEOUT) == "b"


async def test_reports_of_an_unknown_version_are_ignored_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    newer = CountingReplica("newer")
    newer.routing_stats |= {"version": 99}
    known = CountingReplica("known", image("x", 150))
    with caplog.at_level(logging.WARNING, logger="aura.routing"):
        async with routing(newer, known) as router:
            assert await route(router, image_request("new", width=832)) == "newer"
            await route(router, image_request("next", width=832))
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == ["ignoring reports of replica newer (version 99): not understood"]


async def test_a_report_without_a_version_is_ignored() -> None:
    old = CountingReplica("old")
    old.routing_stats = {"number": 5, "profile": "p", "left": {}}
    async with routing(old, CountingReplica("busy", image("x", 150))) as router:
        assert await route(router, image_request("new", width=832)) == "old"


class Sent:
    """A request that was sent to a replica, which says yes after some seconds or not at all."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self.cancelled = False

    async def get_rejection_response(self) -> str:
        if self._seconds is None:
            await asyncio.Event().wait()
        await asyncio.sleep(self._seconds or 0)
        return "accepted"

    def cancel(self) -> None:
        self.cancelled = True


class SendingReplica(CountingReplica):
    """A replica that takes requests after some seconds, or is stopped."""

    def __init__(self, name: str, seconds: float | None) -> None:
        super().__init__(name)
        self.sent = Sent(seconds)

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Sent:
        return self.sent


async def test_a_replica_that_takes_its_time_gets_the_request() -> None:
    async with routing(SendingReplica("a", 0.01)) as router:
        pending = image_request("x")
        replica = await asyncio.wait_for(choose_replica(router, pending), TIMEOUT)
        result: Any = replica.try_send_request(pending, with_rejection=True)
        assert await result.get_rejection_response() == "accepted"
        assert result.replica_unique_id == "a"


@pytest.mark.long
async def test_a_replica_that_does_not_respond_loses_the_request_and_is_avoided() -> None:
    stopped, well = SendingReplica("stopped", None), SendingReplica("well", 0.0)
    async with routing(stopped) as router:
        pending = image_request("x")
        replica = await asyncio.wait_for(choose_replica(router, pending), TIMEOUT)
        result: Any = replica.try_send_request(pending, with_rejection=True)
        router.update_replicas(replicas(stopped, well))
        with pytest.raises(ActorUnavailableError):
            await result.get_rejection_response()
        assert stopped.sent.cancelled
        for number in range(3):
            assert await route(router, image_request(f"y{number}")) == "well"
