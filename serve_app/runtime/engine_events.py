"""What an engine tells of a sample: a snapshot on the way, and how its leg ended.

Knows no engine and no event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.core.capacity.cost_model import Prices
from serve_app.core.capacity.gpu_time import Spent
from serve_app.core.errors import AuraError
from serve_app.core.service.events import Snapshot
from serve_app.runtime.networks.vae import Picture
from serve_app.runtime.stage_model import Packed

logger = logging.getLogger("aura.engine")


@dataclass(frozen=True, slots=True)
class Finished:
    """The leg is done; with a picture if it was the last one."""

    sample: Packed
    picture: Picture | None
    spent: Spent  # the GPU time that the leg took
    prices: Prices


@dataclass(frozen=True, slots=True)
class Failed:
    """The leg ended badly."""

    error: AuraError


Event = Snapshot[npt.NDArray[np.float32]] | Finished | Failed
Listener = Callable[[Event], None]


def tell(listener: Listener, event: Event) -> None:
    """The listener was told, if it still could be: one that fails hurts nobody else's sample."""
    try:
        listener(event)
    except Exception:
        logger.exception("a listener failed")
