"""What an engine reports: a sample's snapshots, previews and end, and each step it took.

No engine and no event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError
from serve_app.core.scheduling.work import Plan
from serve_app.core.service.events import SampleEvent
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.networks.vae import RgbImage

logger = logging.getLogger("aura.engine")


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a segment; with the image if the segment was the last one."""

    sample: HostSample
    image: RgbImage | None
    gpu_time: GpuTime  # that the segment took
    costs: CostTable


@dataclass(frozen=True, slots=True, eq=False)
class PreviewMade:
    """What a sample may become, as predicted at the step `index`."""

    index: int
    image: RgbImage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a segment that an error cut short."""

    error: AuraError


Event = SampleEvent | PreviewMade | Finished | Failed
Listener = Callable[[Event], None]


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
    def of(cls, plan: Plan[torch.Tensor], lanes: int, began: float, seconds: float) -> "StepRecord":
        """Return the record of a STEP plan that was run with so many lanes."""
        return cls(
            plan.samples[0].stage,
            tuple(sample.id for sample in plan.samples),
            sum(sample.rows for sample in plan.samples),
            lanes,
            began,
            seconds,
        )


OnStep = Callable[[StepRecord], None]


def notify(listener: Listener, event: Event) -> None:
    """Notify the listener; log if it raises, so that other samples are unaffected."""
    try:
        listener(event)
    except Exception:
        logger.exception("a listener failed")
