"""What the processes of a deployment's replicas have, counted inside them."""

import asyncio
from dataclasses import dataclass
from typing import Any

import psutil
import ray


@dataclass(frozen=True, slots=True)
class ReplicaCensus:
    """Tasks of all event loops, threads and descriptors of one process."""

    tasks: int
    threads: int
    descriptors: int

    def is_within(self, other: "ReplicaCensus", spare: int) -> bool:
        """Return whether there are no more tasks, and of the rest at most so many more.

        Ray starts a thread or opens a connection in its own time.
        """
        return (
            self.tasks <= other.tasks
            and self.threads <= other.threads + spare
            and self.descriptors <= other.descriptors + spare
        )


def replica_census(app: str, deployment: str) -> dict[str, ReplicaCensus]:
    """Return the census of each replica of a deployment, by the name of its actor."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::{app}#{deployment}#")
    ]
    actors = [ray.get_actor(name, namespace="serve") for name in names]
    counted: list[ReplicaCensus] = ray.get(
        [actor.__ray_call__.remote(_count) for actor in actors], timeout=10
    )
    return dict(zip(names, counted, strict=True))


def _count(replica: Any) -> ReplicaCensus:
    """Count in the replica's process, where Serve runs our code on another loop than its own."""
    tasks = list(asyncio.tasks._all_tasks)  # type: ignore[attr-defined]  # private: of every loop
    process = psutil.Process()
    running = sum(not task.done() for task in tasks)
    return ReplicaCensus(running, process.num_threads(), process.num_fds())
