"""The proxies' router: a request leaves an ingress that does not answer, if there is another."""

import asyncio
import gc
import pickle
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, cast

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica
from starlette.types import Message

from serve_app.deployments.ray_private import INGRESS_ROUTER, IngressRouter, has_whole_body
from tests.support.ray_private import (
    DeploymentHandleSource,
    DeploymentID,
    MessageQueue,
    RequestMetadata,
    RequestProtocol,
    choose_replica,
    stop_routing,
)

INGRESS = DeploymentID("Ingress", "aura")
TIMEOUT = 10.0  # seconds, for what must happen


class Sent:
    """A request at a replica that is stopped: nobody takes or refuses it."""

    def __init__(self) -> None:
        self.cancelled = False

    async def get_rejection_response(self) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled = True


class Taken(Sent):
    """A request that a replica takes at once."""

    async def get_rejection_response(self) -> None:
        return


class StoppedIngress:
    """A replica as the proxies' routers see it."""

    multiplexed_model_ids: frozenset[str] = frozenset()
    node_id, availability_zone, max_ongoing_requests = "node", None, 100
    backend_replica_id = None

    def __init__(self, name: str) -> None:
        self.replica_id, self.sent = ReplicaID(name, INGRESS), Sent()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Sent:
        return self.sent


class Forgetful(StoppedIngress):
    """A replica that takes every request, and keeps nothing of it."""

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Sent:
        return Taken()


class HastyRouter(IngressRouter):
    """A router that waits for no more than a moment."""

    consent_within = 0.01


@asynccontextmanager
async def routing(
    *doubles: StoppedIngress, kind: type[IngressRouter] = HastyRouter
) -> AsyncIterator[IngressRouter]:
    router: IngressRouter = cast(Any, kind)(
        deployment_id=INGRESS,
        handle_source=DeploymentHandleSource.UNKNOWN,
        use_replica_queue_len_cache=True,
    )
    router.update_replicas(cast("list[RunningReplica]", list(doubles)))
    yield router
    stop_routing(router)


def request() -> PendingRequest:
    metadata = RequestMetadata(request_id="1", internal_request_id="1", call_method="__call__")
    return PendingRequest(args=[], kwargs={}, metadata=metadata, created_at=0.0)


async def choose(router: IngressRouter, pending: PendingRequest, *, is_retry: bool = False) -> Any:
    """Return the replica that Serve sends the request to."""
    choice = choose_replica(router, pending, is_retry=is_retry)
    return await asyncio.wait_for(choice, TIMEOUT)


async def test_a_request_leaves_an_ingress_that_neither_takes_nor_refuses_it() -> None:
    async with routing(StoppedIngress("a"), StoppedIngress("b")) as router:
        pending = request()
        replica = await choose(router, pending)
        sent = replica.try_send_request(pending, with_rejection=True)
        with pytest.raises(ActorUnavailableError):
            await asyncio.wait_for(sent.get_rejection_response(), TIMEOUT)
        assert sent.cancelled


async def test_a_request_leaves_only_once_it_may() -> None:
    class PatientRouter(HastyRouter):
        questions = 0

        def may_leave(self, pending: PendingRequest) -> bool:
            self.questions += 1
            return self.questions == 3

    async with routing(StoppedIngress("a"), StoppedIngress("b"), kind=PatientRouter) as router:
        pending = request()
        replica = await choose(router, pending)
        sent = replica.try_send_request(pending, with_rejection=True)
        with pytest.raises(ActorUnavailableError):
            await asyncio.wait_for(sent.get_rejection_response(), TIMEOUT)
        assert cast(PatientRouter, router).questions == 3


START = {"type": "http.request", "body": b"{", "more_body": True}
END = {"type": "http.request", "body": b"}", "more_body": False}
LEFT = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("messages", "is_whole"),
    [
        ([], False),
        ([START], False),
        ([START, START], False),
        ([END], True),
        ([START, END], True),
        ([START, END, LEFT], False),
        ([LEFT], False),
    ],
)
def test_a_proxy_has_the_whole_body(messages: list[Message], is_whole: bool) -> None:
    queue = MessageQueue()
    for message in messages:
        queue.put_nowait(message)
    assert has_whole_body(queue) is is_whole
    queue.get_messages_nowait()
    assert not has_whole_body(queue)


async def test_an_http_request_without_its_proxy_stays() -> None:
    async with routing(StoppedIngress("a"), StoppedIngress("b")) as router:
        pending = request()
        assert router.may_leave(pending)
        pending.metadata._request_protocol = RequestProtocol.HTTP
        assert not router.may_leave(pending)


async def test_a_request_stays_at_the_only_ingress() -> None:
    only = StoppedIngress("a")
    async with routing(only) as router:
        assert await choose(router, request()) is only


async def test_the_next_ingress_has_twice_as_long() -> None:
    async with routing(StoppedIngress("a"), StoppedIngress("b")) as router:
        pending = request()
        first = await choose(router, pending)
        second = await choose(router, pending, is_retry=True)
        assert [first.within, second.within] == [0.01, 0.02]


@pytest.mark.parametrize("is_awaited", [True, False])
async def test_a_request_is_freed_without_a_collection_of_garbage(is_awaited: bool) -> None:
    """Ingresses collect seldom, and each of their requests passes two routers."""
    async with routing(Forgetful("a"), Forgetful("b")) as router:
        pending = request()
        replica = await choose(router, pending)
        sent = replica.try_send_request(pending, with_rejection=True)
        known = weakref.ref(sent)
        gc.disable()
        try:
            if is_awaited:
                await sent.get_rejection_response()
            del sent
            assert known() is None
        finally:
            gc.enable()


def test_a_proxy_needs_nothing_of_this_package_for_it() -> None:
    config = RequestRouterConfig.model_validate({"request_router_class": INGRESS_ROUTER})
    modules: set[str] = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            modules.add(module_name.partition(".")[0])
            return super().find_class(module_name, global_name)

    router = Reader(BytesIO(config.get_serialized_request_router_cls() or b"")).load()
    assert router.__name__ == IngressRouter.__name__
    assert "ray" in modules
    assert "serve_app" not in modules
