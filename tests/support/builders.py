"""Values that tests need often, with defaults for what a test does not care about."""

from dataclasses import fields
from typing import Any

from serve_app.core.service.events import EngineStats, ReplicaStats

_ENGINE_FIELDS = {field.name for field in fields(EngineStats)}


def replica_stats(**values: Any) -> ReplicaStats:
    """Return the stats of a replica that has done nothing yet, but for the given values.

    Values of its engine are named directly too.
    """
    engine = {name: value for name, value in values.items() if name in _ENGINE_FIELDS}
    rest: dict[str, Any] = {"pid": 1, "profile": "p"}
    rest |= {name: value for name, value in values.items() if name not in _ENGINE_FIELDS}
    return ReplicaStats(engine=EngineStats(**engine), **rest)
