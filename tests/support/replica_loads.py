"""Loads of replicas whose images have one of two sizes."""

from serve_app.core.capacity.replica_load import KeyLoad, ReplicaLoad

SQUARE, WIDE = "square", "wide"


def replica(**loads: tuple[int, int]) -> ReplicaLoad:
    """Return a replica's load from the steps of each size, and the most of any of its images."""
    by_key = {key: KeyLoad(*two, 0.1, 0.1) for key, two in loads.items()}
    return ReplicaLoad(4, by_key, {})


def added(load: ReplicaLoad, key: str, steps: int, step_seconds: float = 0.1) -> float:
    """Return the seconds that one more image of this size adds."""
    return load.added_seconds(key, steps, steps * step_seconds)
