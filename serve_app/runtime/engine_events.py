"""What an engine reports: a sample's snapshots and the end of its segment, and each step it took.

No engine and no event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError
from serve_app.core.scheduling.work import Plan
from serve_app.core.service.events import Progress, Queued, SampleEvent
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import HostSample

logger = logging.getLogger("aura.engine")

SNAPSHOT_GAP = 0.2  # seconds between two snapshots of a sample, which take about a millisecond each
PROGRESS_GAP = 1.0  # seconds between two `Progress` events of a sample that goes on running


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a segment; with the image if the segment was the last one."""

    sample: HostSample
    image: RgbImage | None
    gpu_time: GpuTime  # that the segment took
    costs: CostTable


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a segment that an error cut short."""

    error: AuraError


Event = SampleEvent | Finished | Failed
Listener = Callable[[Event], None]


@dataclass(slots=True)
class Subscription:
    """Who listens to a sample, when it was last copied out, and what the listener knows of it.

    Times are of the engine's clock.
    """

    listener: Listener
    index: int
    time: float
    retried_alone: bool = False  # after running out of memory in a turn of its own
    runs: bool = False  # as far as the listener knows
    progress_time: float = -inf  # of the last `Progress`
    turn_time: float = -inf  # when its last turn began

    def takes_snapshot(self, index: int, now: float, every: int) -> bool:
        """Return whether a snapshot is due after `every` steps, and note it if so."""
        if index - self.index < every or now - self.time < SNAPSHOT_GAP:
            return False
        self.index, self.time = index, now
        return True

    def notify_turn(self, index: int, now: float) -> None:
        """Let the listener know, before a turn, that the sample takes part in it."""
        self.turn_time = now
        if not self.runs or now - self.progress_time >= PROGRESS_GAP:
            self.runs, self.progress_time = True, now
            notify(self.listener, Progress(index))

    def notify_absence(self, now: float) -> bool:
        """Let the listener know if the sample has had no turn for a while; return whether so."""
        if now - self.turn_time < PROGRESS_GAP:
            return False
        self.runs = False
        notify(self.listener, Queued())
        return True


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One UNet call of a batch."""

    stage: Stage
    ids: tuple[str, ...]  # of the samples
    rows: int  # of the samples, without padding
    lanes: int  # with padding
    began: float  # seconds of the engine's clock
    seconds: float

    @classmethod
    def of(cls, plan: Plan[torch.Tensor], began: float, seconds: float) -> "StepRecord":
        """Return the record of a STEP plan that was run."""
        return cls(
            plan.samples[0].stage,
            tuple(sample.id for sample in plan.samples),
            sum(sample.spec.rows for sample in plan.samples),
            plan.lanes,
            began,
            seconds,
        )


def notify(listener: Listener, event: Event) -> None:
    """Notify the listener; log if it raises, so that other samples are unaffected."""
    try:
        listener(event)
    except Exception:
        logger.exception("a listener failed")
