"""Values that tests need often, with defaults for what a test does not care about."""

from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.service.events import ReplicaStats


def replica_stats(**fields: Any) -> ReplicaStats:
    """Return the stats of a replica that has done nothing yet, but for the given fields."""
    defaults: dict[str, Any] = {
        "pid": 1,
        "profile": "p",
        "state": "",
        "turns": 0,
        "steps": 0,
        "finished": 0,
        "cancelled": 0,
        "gpu_seconds": 0.0,
        "wasted_gpu_seconds": 0.0,
        "owed_seconds": 0.0,
        "costs": CostTable(),
        "positions": {},
    }
    return ReplicaStats(**(defaults | fields))
