"""`ImageProgress`: one image on its way through a simulated cluster."""

from dataclasses import dataclass

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.replica import SimReplica
from serve_app.simulator.traces import Arrival


@dataclass(slots=True)
class ImageProgress:
    """How far an image has come, and what it still needs."""

    arrival: Arrival
    segments: tuple[StageSegment, ...]
    isolated_seconds: float
    due: float  # seconds: when it would be done, had it stepped in full batches at once
    owed: dict[Stage, float]  # GPU-seconds that it still needs, by stage
    caller: Caller
    next_segment: int = 0
    replica: SimReplica | None = None  # that has it

    @property
    def deadline(self) -> float | None:
        """When it must be done, in seconds."""
        timeout_s = self.arrival.timeout_s
        return None if timeout_s is None else self.arrival.at + timeout_s
