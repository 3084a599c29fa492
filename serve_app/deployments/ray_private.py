"""Ray's private names that this project uses, all of them, behind public ones.

Ray promises nothing about these names. They were read in the version below. A test fails if another
version is installed, if a name is missing, or if another module uses a private name of Ray.
"""

import asyncio
import weakref
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import ReplicaState, RequestMetadata
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve._private.http_util import MessageQueue
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentResponseGenerator
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

__all__ = [
    "CHECKED_AGAINST",
    "INGRESS_ROUTER",
    "POWER_OF_TWO_CHOICES",
    "PRIVATE_NAMES",
    "DispatchingRouter",
    "IngressRouter",
    "ReplicaState",
    "RequestMetadata",
    "accepting_replica",
    "broadcast_results",
    "has_whole_body",
    "serve_client",
    "shut_down_without_waiting",
]

CHECKED_AGAINST = "2.60"
CONSENT_WITHIN = 5.0  # seconds in which a replica takes or refuses a request
POWER_OF_TWO_CHOICES = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
PRIVATE_NAMES = (  # module:attributes
    POWER_OF_TWO_CHOICES,
    "ray.serve._private.common:ReplicaState",
    "ray.serve._private.common:RequestMetadata",
    "ray.serve._private.constants:RAY_SERVE_ENABLE_HA_PROXY",
    "ray.serve._private.http_util:MessageQueue",  # whose `_message_queue` is used
    "ray.serve._private.proxy:HTTPProxy",  # whose `asgi_receive_queues` are used
    "ray._private.worker:global_worker.actors",
    "ray.serve._private.request_router.pow_2_router:PowerOfTwoChoicesRequestRouter",
    "ray.serve._private.client:ServeControllerClient.shutdown",  # whose `_controller` is used
    "ray.serve.context:_get_global_client",
    "ray.serve.handle:DeploymentBroadcastResponse._fetch_replica_results_async",
    "ray.serve.handle:DeploymentResponseGenerator._fetch_future_result_async",
    "ray.serve.request_router:RunningReplica.try_send_request",
    "ray.serve._private.replica_result:ReplicaResult.get_rejection_response",
    "ray.serve.request_router:RequestRouter._cancel_routing_task_for_pending_request",
    "ray.serve.request_router:RequestRouter._choose_replica_for_request",
    "ray.serve.request_router:RequestRouter._fulfill_next_pending_request",
    "ray.serve.request_router:RequestRouter._record_queue_wait_time",
    "ray.serve.request_router:RequestRouter._remove_pending_request_from_indices",
)


def serve_client() -> Any:
    """Return the client of the running Serve, which can deploy a whole config."""
    return _get_global_client()


def shut_down_without_waiting() -> None:
    """Tell Serve to shut down, as `serve.shutdown` does, which waits for every replica."""
    with suppress(Exception):  # Serve was not started, or is gone
        ray.get(serve_client()._controller.graceful_shutdown.remote(wait=False), timeout=2)


async def broadcast_results(response: DeploymentBroadcastResponse) -> list[Any]:
    """Return the result object of every replica that a broadcast reached.

    Each has an awaitable `get_async()`. Serve's `results_async` would return nothing at all if one
    replica is silent, as those of a dead node are until Ray has noticed.
    """
    return cast("list[Any]", await response._fetch_replica_results_async())


async def accepting_replica(response: DeploymentResponseGenerator[Any]) -> str:
    """Wait until a replica has agreed to take a request; return the replica's id, or "".

    It is known if a `DispatchingRouter` in this process has sent the request.
    """
    result = await response._fetch_future_result_async()
    return cast(str, getattr(result, "replica_unique_id", ""))


class _ReplicaWithDeadline:
    """A replica that has a few seconds to take or refuse a request.

    Serve waits without end for a process that is stopped, or whose machine is cut off. Here it gets
    the error after which it chooses a replica anew, once `may_leave` says that another replica can
    have the request.
    """

    def __init__(
        self,
        replica: RunningReplica,
        within: float,
        on_silence: Callable[[RunningReplica], None] = lambda replica: None,
        may_leave: Callable[[PendingRequest], bool] = lambda pending: True,
    ) -> None:
        self.within = within  # seconds
        self._replica, self._on_silence, self._may_leave = replica, on_silence, may_leave

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        result: Any = self._replica.try_send_request(pr, with_rejection=with_rejection)
        result.replica_unique_id = self._replica.replica_id.unique_id
        # The result has the function below, which must not have it too: nobody would free a cycle
        # of two before a collection of garbage, and every request makes one.
        known: Callable[[], Any] = weakref.ref(result)

        async def consent_in_time() -> Any:
            sent = known()  # there is one: whoever calls has it
            work = type(sent).get_rejection_response(sent)
            consent = asyncio.create_task(work, context=Context())
            try:
                while not (await asyncio.wait([consent], timeout=self.within))[0]:
                    if self._may_leave(pr):
                        sent.cancel()
                        self._on_silence(self._replica)
                        raise ActorUnavailableError("the replica does not respond", None)
                return consent.result()
            finally:
                consent.cancel()
                del consent, work  # an error would have them, and they it

        result.get_rejection_response = consent_in_time
        return result


class DispatchingRouter(RequestRouter):
    """A Serve request router that decides itself which waiting request gets a place.

    Serve runs `_choose_replica_for_request` for each request, from its arrival until it has a
    replica. Meanwhile Serve's tasks, each started for one request, call `choose_replicas` and ask
    the chosen replicas. When a replica agrees to take a request, the task calls
    `_fulfill_next_pending_request`. Serve's own method gives the replica to the request whose
    metadata the task was started with. Here `assign` names the request, and perhaps another
    replica. Metadata can't name it: requests made while one HTTP request is served share their
    internal request id.
    """

    @abstractmethod
    def request_waits(self, pending: PendingRequest) -> str:
        """Take note that a request waits for a replica; return a key of its own."""

    @abstractmethod
    def request_left(self, key: str) -> None:
        """Take note that a request has a replica, or that its caller has gone."""

    @abstractmethod
    def is_dispatching(self) -> bool:
        """Return whether the current task asks for a request that `assign` decides about."""

    @abstractmethod
    def assign(self, replica: RunningReplica) -> tuple[RunningReplica, PendingRequest] | None:
        """Return the replica and the request to bring together, if any.

        `replica` agreed to take a request of the current task's choice.
        """

    @abstractmethod
    def replica_did_not_respond(self, replica: RunningReplica) -> None:
        """Take note that a replica neither took nor refused a request within a few seconds."""

    def _with_bounded_consent(self, replica: RunningReplica) -> RunningReplica:
        bounded = _ReplicaWithDeadline(replica, CONSENT_WITHIN, self.replica_did_not_respond)
        return cast(RunningReplica, bounded)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        key = self.request_waits(pending_request)
        try:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        finally:
            self.request_left(key)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: RequestMetadata | None = None
    ) -> None:
        if not self.is_dispatching():
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif pair := self.assign(replica):
            replica, pending = pair
            self._cancel_routing_task_for_pending_request(pending)
            self._record_queue_wait_time(pending)
            pending.future.set_result(self._with_bounded_consent(replica))
            # Serve drops finished requests from the front of its queue only, and an old request
            # may wait there for long.
            with suppress(ValueError):
                self._pending_requests_to_fulfill.remove(pending)
            self._remove_pending_request_from_indices(pending)


def has_whole_body(queue: MessageQueue) -> bool:
    """Return whether all of a request's body is in a proxy's queue, so that nobody has taken it."""
    messages: Any = queue._message_queue
    try:
        first, last = messages[0], messages[-1]
    except IndexError:  # nothing has arrived, or a replica has it
        return False
    is_body = first["type"] == last["type"] == "http.request"
    return is_body and not last.get("more_body", False)


class IngressRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's own router, but a request leaves an ingress that neither takes nor refuses it.

    With Serve's own a newcomer waits at a stopped ingress for as long as that is stopped, although
    another one is idle. Where there is no other one it waits, as it would in any case. Every proxy
    gets this class by value, since it may have no other module of this package.

    A request leaves only with a body that has wholly arrived and is still in the proxy. An ingress
    asks its proxy for the body piece by piece, by the id of the request, which is the same at the
    next ingress: if the first one goes on while pieces are yet to come, each may get some.
    """

    # Seconds that the first ingress has, which need do nothing before it takes a request. The next
    # one has twice as long, and so on: if the machine is slow, all are.
    consent_within = 2.0

    def may_leave(self, pending: PendingRequest) -> bool:
        """Return whether the next ingress is sure to get all of the request's body."""
        if not pending.metadata.is_http_request:
            return True
        id = pending.metadata.internal_request_id
        for actor in ray._private.worker.global_worker.actors.values():  # at most one: the proxy
            if (queue := actor.http_proxy.asgi_receive_queues.get(id)) is not None:
                return has_whole_body(queue)
        return False

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        if len(self.curr_replicas) < 2:
            return replica
        known = vars(pending_request)  # Serve keeps the request from one try to the next
        within = known.get("consent_within", self.consent_within)
        known["consent_within"] = 2 * within
        bounded = _ReplicaWithDeadline(replica, within, may_leave=self.may_leave)
        return cast(RunningReplica, bounded)


# HAProxy routes by itself, and then Serve takes no other router for an ingress.
INGRESS_ROUTER = (
    POWER_OF_TWO_CHOICES
    if RAY_SERVE_ENABLE_HA_PROXY
    else f"{IngressRouter.__module__}.{IngressRouter.__qualname__}"
)
