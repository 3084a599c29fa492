"""The running service as end-to-end tests see it: its address, and its replicas' stats."""

from dataclasses import dataclass, field
from typing import Any

import httpx
import ray
from ray import serve

from serve_app.core.service.events import ReplicaStats
from tests.support.waiting import until

APP = "aura"
STAGES = {"base": "BaseGenerator", "refiner": "Refiner"}  # deployments by stage
LONG: dict[str, Any] = {"prompt": "a red fox", "seed": 5, "steps": 100, "imageCount": 1}
START_TIMEOUT_S = 90.0


def available_gpus() -> float:
    """Return the GPUs of this test run's Ray that no replica has."""
    return float(ray.available_resources().get("GPU", 0))


@dataclass
class Service:
    """A service with two base replicas and two refiners."""

    address: str
    expected: dict[float, str] = field(default_factory=dict)  # see `expected_image`

    def expected_image(self, handoff: float) -> str:
        """Return the base64 image of `LONG` when no process dies; made once for each handoff."""
        if handoff not in self.expected:
            response = self.post("/generate", **LONG, handoff=handoff)
            assert response.status_code == 201, response.text
            (self.expected[handoff],) = response.json()["images"]
        return self.expected[handoff]

    def post(self, route: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.address}{route}", json=body, timeout=180)

    def stats(self, stage: str) -> list[ReplicaStats]:
        """Return the stats of the replicas that answer; a dead one may be listed for a moment."""
        handle = serve.get_deployment_handle(STAGES[stage], APP)
        try:
            results = handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
        except Exception:  # no replica, or one that died during the call
            return []
        return [stats for stats in results if isinstance(stats, ReplicaStats)]

    def counts(self, stage: str) -> dict[str, int]:
        """Return how many samples the stage's replicas have finished and cancelled."""
        engines = [stats.engine for stats in self.stats(stage)]
        return {
            "finished": sum(engine.finished for engine in engines),
            "cancelled": sum(engine.cancelled for engine in engines),
        }

    def is_busy(self, stage: str) -> bool:
        """Return whether any replica of the stage has a sample."""
        return any(stats.engine.positions for stats in self.stats(stage))

    def wait_ready(self, *stages: str) -> None:
        """Wait until each of these stages, or of all, has its two replicas."""

        def ready() -> bool:
            replicas = httpx.get(f"{self.address}/health", timeout=10).json()["replicas"]
            return all(replicas[stage] == 2 for stage in stages or STAGES)

        until(ready, START_TIMEOUT_S)
