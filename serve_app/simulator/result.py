"""The result of a simulation: what became of each image, and the cluster over time."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.core.capacity.admission import Refusal
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.traces import Arrival


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that was generated."""

    arrival: Arrival
    seconds: float  # from the request to the result
    isolated_seconds: float  # that it would have taken on idle replicas


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """An image that was sent away."""

    arrival: Arrival
    refusal: Refusal
    retry_after: int  # seconds
    returned: bool  # whether it had been sent away before


@dataclass(frozen=True, slots=True)
class LateImage:
    """An image that was given up: its deadline had passed, or could not be met any more."""

    arrival: Arrival
    begun: bool  # whether it had cost steps


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """The state of the cluster at one observation."""

    at: float  # seconds
    replicas: Mapping[Stage, int]
    owed: Mapping[Stage, float]  # GPU-seconds
    images: int  # in flight
    charged: Mapping[str, float]  # GPU-seconds so far, by caller


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The result of running a trace."""

    finished: tuple[FinishedImage, ...]
    timeline: tuple[TimelinePoint, ...]
    gpu_seconds: float
    occupancy: float  # UNet rows of images, as a share of those of full batches
    finished_at: float  # seconds: when the last image was done
    refused: tuple[RefusedImage, ...] = ()
    late: tuple[LateImage, ...] = ()
