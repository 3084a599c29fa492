"""Ray's private names that only tests use: see `serve_app.deployments.ray_private`."""

from typing import Any

from ray.serve._private.autoscaling_state import _resolve_policy_callable as resolve_policy
from ray.serve._private.build_app import build_app
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
    RequestProtocol,
    TimeStampedValue,
)
from ray.serve._private.http_util import MessageQueue
from ray.serve.autoscaling_policy import (
    _apply_app_level_autoscaling_config as apply_autoscaling_config,
)
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

__all__ = [
    "RUNNING_REQUESTS_KEY",
    "AcceptedResponse",
    "DeploymentHandleSource",
    "DeploymentID",
    "MessageQueue",
    "ReplicaID",
    "RequestMetadata",
    "RequestProtocol",
    "TimeStampedValue",
    "apply_autoscaling_config",
    "build_app",
    "choose_replica",
    "resolve_policy",
    "stop_routing",
]


class AcceptedResponse:
    """A response of Serve's to a request that the replica `r1` has agreed to take."""

    replica_unique_id = "r1"

    async def _fetch_future_result_async(self) -> "AcceptedResponse":
        return self


async def choose_replica(
    router: RequestRouter, pending: PendingRequest, *, is_retry: bool = False
) -> RunningReplica:
    """Route a request, as Serve does for each one."""
    return await router._choose_replica_for_request(pending, is_retry=is_retry)


def stop_routing(router: RequestRouter) -> None:
    """Cancel the tasks that Serve started for the router's requests."""
    tasks: set[Any] = set(router._routing_tasks)
    for task in tasks:
        task.cancel()
