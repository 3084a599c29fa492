"""Core's routing decision as Serve's router.

Knows no samples: it counts the images this handle has sent to each replica and that have not ended.
"""

from collections import Counter
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app.core.policy import rank_replicas


class LeastBusyRouter(FIFOMixin, RequestRouter):
    """Sends an image to the replica with the fewest images, then to the one longest not chosen.

    So two images of one request run on two replicas when there are two. Serve's own router draws
    two replicas at random and asks for queue lengths, which for a tie gives both to one.
    """

    def initialize_state(self, **_: Any) -> None:
        """Nobody is busy, nobody was chosen."""
        self._flying: Counter[str] = Counter()  # images by replica
        self._chosen: dict[str, int] = {}  # replica: when it was last chosen
        self._clock = 0

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Every candidate in a rank of its own, the best first."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all are full
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = rank_replicas(sorted(by_id), self._flying, self._chosen)
        if ranked:
            self._clock += 1
            self._chosen[ranked[0]] = self._clock
        return [[by_id[id]] for id in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """The replica took the request."""
        self._flying[replica_id.unique_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request has ended, however."""
        self._flying[replica_id.unique_id] = max(0, self._flying[replica_id.unique_id] - 1)
