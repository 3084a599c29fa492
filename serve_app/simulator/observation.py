"""What an autoscaler may see of a simulated stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class StageObservation:
    """What an autoscaler may see of a stage: the service's view, and Ray Serve's count."""

    load: StageLoad
    requests: int  # on replicas, or waiting for one


Scaler = Callable[[float, Mapping[Stage, StageObservation]], Mapping[Stage, int]]
