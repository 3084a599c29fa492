"""Typed events of an image on its way, and what a replica reports about itself.

A stage streams `StageEvent`s to the conductor, and a maker (the conductor, or another object that
turns a task into an image) streams `ImageEvent`s to the job, whose own are in `job_events`.
Whoever acts on events matches on the type and ends with `assert_never`, so that an unknown event is
an error and never mistaken for another one. No tensors: latents are in whatever form the wire has.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, assert_never

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import L, Sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import EngineFault


@dataclass(frozen=True, slots=True)
class Accepted:
    """A replica has agreed to take the sample, and has reported nothing of it so far."""

    replica: str  # its id, as routers know it


@dataclass(frozen=True, slots=True)
class Queued:
    """A replica has the sample, which waits there for its turn.

    A replica repeats it, or the last `Progress`, while it is well.
    """


@dataclass(frozen=True, slots=True)
class Progress:
    """The sample is in the replica's running batch, about to take the step `index`.

    Sent when the sample enters the batch, and afterwards at most once a second, or ten times while
    somebody watches. `alone`: it is in quarantine, where nothing else runs beside it.
    """

    index: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """What the sample may become, as predicted at the step `index`: a small JPEG file.

    Sent while somebody watches, at most five times a second.
    """

    index: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[L]):
    """A sample in the middle of its segment, from which another replica can continue it."""

    sample: Sample[L]


@dataclass(frozen=True, slots=True)
class SegmentDone(Generic[L]):
    """The end of a segment: the sample as the next stage takes it.

    `png` is the finished image after the last segment, else None. `gpu_time` is what the segment
    took, and `costs` are the replica's costs at its end.
    """

    sample: Sample[L]
    png: bytes | None
    gpu_time: GpuTime
    costs: CostTable


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image, and the numeric profile of each stage that it went through.

    Under equal profiles an equal spec gives equal bytes. `warnings` are for the caller.
    """

    png: bytes
    profiles: tuple[tuple[Stage, str], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """The last event of every maker's stream that does not raise."""

    image: GeneratedImage


# Of a sample in the middle of its segment.
SampleEvent = Queued | Progress | Snapshot[Any]
StageEvent = Accepted | SampleEvent | Preview | SegmentDone[Any]
ImageEvent = StageEvent | Generated


async def last_image(
    events: AsyncGenerator[ImageEvent, None],
    observe: Callable[[ImageEvent], None] = lambda event: None,
) -> GeneratedImage:
    """Wait for the end of a stream and return its image; close the stream however the wait ends.

    `observe` is called with every event. Raises what the stream raises, and `EngineFault` if it
    ends without an image.
    """
    async with aclosing(events):
        async for event in events:
            observe(event)
            match event:
                case Generated(image):
                    return image
                case Accepted() | Queued() | Progress() | Preview() | Snapshot() | SegmentDone():
                    pass
                case _:
                    assert_never(event)
    raise EngineFault("the stream of events ended without an image")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What one engine has done since it started, and what it is doing."""

    turns: int = 0  # step turns, each one UNet call for a batch
    steps: int = 0  # steps of samples: a turn of four samples counts four
    finished: int = 0
    cancelled: int = 0
    numeric_faults: int = 0  # images whose numbers were not finite
    gpu_seconds: float = 0.0  # GPU time
    wasted_gpu_seconds: float = 0.0  # the part of it that cancelled and failed images took
    seconds_by_caller: Mapping[Caller, float] = field(default_factory=dict)  # of the last ones
    costs: CostTable = field(default_factory=CostTable)  # what its turns take
    positions: Mapping[str, int] = field(default_factory=dict)  # index of each sample in flight
    models: tuple[ModelKey, ...] = ()  # in memory, then offloaded to the host


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What one replica of a stage is and has done, for /health, logs and tests."""

    pid: int
    profile: str
    engine: EngineStats
    owed_seconds: float = 0.0  # predicted GPU time until everything accepted is done
    shortfall: str = ""  # what the device had no memory for
    is_hanging: bool = False  # a turn takes so long that it will be replaced
