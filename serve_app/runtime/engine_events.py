"""What an engine tells of a sample: a snapshot on the way, and how its leg ended.

Knows no engine and no event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.errors import AuraError
from serve_app.core.service.events import Snapshot
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import HostSample

logger = logging.getLogger("aura.engine")


@dataclass(frozen=True, slots=True)
class Finished:
    """The leg is done; with a picture if it was the last one."""

    sample: HostSample
    image: RgbImage | None
    gpu_time: GpuTime  # the GPU time that the leg took
    costs: CostTable


@dataclass(frozen=True, slots=True)
class Failed:
    """The leg ended badly."""

    error: AuraError


Event = Snapshot[npt.NDArray[np.float32]] | Finished | Failed
Listener = Callable[[Event], None]


def notify(listener: Listener, event: Event) -> None:
    """The listener was told, if it still could be: one that fails hurts nobody else's sample."""
    try:
        listener(event)
    except Exception:
        logger.exception("a listener failed")
