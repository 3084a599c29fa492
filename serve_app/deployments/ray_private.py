"""Ray's private names that this project uses, all of them, behind public ones.

Ray promises nothing about these names. They were read in the version below. A test fails if another
version is installed, if a name is missing, or if another module uses a private name of Ray.
"""

from typing import Any, cast

from ray.serve._private.common import ReplicaState, RequestMetadata
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentBroadcastResponse
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

__all__ = [
    "CHECKED_AGAINST",
    "POWER_OF_TWO_CHOICES",
    "PRIVATE_NAMES",
    "DispatchingRouter",
    "ReplicaState",
    "RequestMetadata",
    "broadcast_results",
    "serve_client",
]

CHECKED_AGAINST = "2.60"
POWER_OF_TWO_CHOICES = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
PRIVATE_NAMES = (  # module:attributes
    POWER_OF_TWO_CHOICES,
    "ray.serve._private.common:ReplicaState",
    "ray.serve._private.common:RequestMetadata.internal_request_id",
    "ray.serve.context:_get_global_client",
    "ray.serve.handle:DeploymentBroadcastResponse._fetch_replica_results_async",
    "ray.serve.request_router:RequestRouter._choose_replica_for_request",
    "ray.serve.request_router:RequestRouter._fulfill_next_pending_request",
)


def serve_client() -> Any:
    """Return the client of the running Serve, which can deploy a whole config."""
    return _get_global_client()


async def broadcast_results(response: DeploymentBroadcastResponse) -> list[Any]:
    """Return the result object of every replica that a broadcast reached.

    Each has an awaitable `get_async()`. Serve's `results_async` would return nothing at all if one
    replica is silent, as those of a dead node are until Ray has noticed.
    """
    return cast("list[Any]", await response._fetch_replica_results_async())


class DispatchingRouter(RequestRouter):
    """A Serve request router that decides itself which waiting request gets a place.

    Serve runs `_choose_replica_for_request` for each request, from its arrival until it has a
    replica. Meanwhile Serve's tasks, each started for one request, call `choose_replicas` and ask
    the chosen replicas. When a replica agrees to take a request, the task calls
    `_fulfill_next_pending_request` with the metadata of the request that it was started for.
    Serve's own method gives that request the replica. Here `assign` may name another request and
    another replica first.
    """

    def request_waits(self, pending: PendingRequest) -> None:
        """Take note that a request waits for a replica."""
        raise NotImplementedError

    def request_left(self, pending: PendingRequest) -> None:
        """Take note that a request has a replica, or that its caller has gone."""
        raise NotImplementedError

    def assign(
        self, replica: RunningReplica, request: RequestMetadata
    ) -> tuple[RunningReplica, RequestMetadata] | None:
        """Return the replica and the request to bring together, if any.

        `replica` agreed to take a request, and Serve's task was started for `request`.
        """
        raise NotImplementedError

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        self.request_waits(pending_request)
        try:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        finally:
            self.request_left(pending_request)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: RequestMetadata | None = None
    ) -> None:
        if request_metadata is not None and (pair := self.assign(replica, request_metadata)):
            super()._fulfill_next_pending_request(*pair)
