"""What is said of a sample on its way: by a stage to the conductor, by the conductor to HTTP.

Knows no tensors and no Ray; latents inside are whatever form the wire has.
"""

from dataclasses import dataclass
from typing import Generic

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import L, Sample
from serve_app.core.diffusion.spec import Stage


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[L]):
    """A sample in the middle of its leg, to be continued elsewhere if need be."""

    sample: Sample[L]


@dataclass(frozen=True, slots=True)
class SegmentDone(Generic[L]):
    """The leg is done. `png` is the picture if it was the last leg; `spent` the GPU time that it
    took there, and `prices` what turns take there."""

    sample: Sample[L]
    png: bytes | None
    gpu_time: GpuTime
    costs: CostTable


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image at the end of its journey, and the numeric profile of every stage it went through:
    under equal profiles an equal spec gives equal bytes. `warnings` are for its asker."""

    png: bytes
    profiles: tuple[tuple[Stage, str], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What one replica of a stage is and has done, for /health, logs and tests."""

    pid: int
    profile: str
    state: str  # the scheduler's own words
    turns: int  # UNet calls
    steps: int  # steps of samples: a turn of four samples counts four
    finished: int
    cancelled: int
    gpu_seconds: float  # of GPU time, since it began
    wasted_gpu_seconds: float  # of those, what images spent that were cancelled or failed
    owed_seconds: float  # of GPU time, until all that it has is done and nothing comes
    costs: CostTable  # what its turns take, to predict others by
    positions: dict[str, int]  # step index of each sample in flight
    models: tuple[str, ...] = ()  # those in memory, then those parked on the host
    shortfall: str = ""  # what its device had no room for
