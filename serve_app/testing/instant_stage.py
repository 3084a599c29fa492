"""Replicas that finish a segment at once, to measure and test the service around the engine."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample, StageSegment, without_tensors
from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.core.service.events import EngineStats, ReplicaStats, SegmentDone


class InstantStage:
    """A replica that returns latents of zeros, or one PNG that it was given, at once."""

    def __init__(self, png: bytes) -> None:
        self._png = png

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> AsyncIterator[Any]:
        """Yield the sample at the end of its segment, with latents as large as real ones."""
        latents = np.zeros((LATENT_CHANNELS, *sample.spec.latent_shape), np.float32)
        done = replace(
            sample,
            index=segment.stop,
            latents=latents,
            inputs=sample.inputs.after_encoding(),
            profile="none",
        )
        if segment.last:
            yield SegmentDone(without_tensors(done), self._png, GpuTime(), CostTable())
        else:
            yield SegmentDone(done, None, GpuTime(), CostTable())

    async def renew(self, sender: str) -> None:
        """Do nothing: no sample stays here."""

    async def take(self, id: str, taker: str) -> None:
        """Return nothing: no sample stays here."""

    async def stats(self) -> ReplicaStats:
        """Return the counters of a replica that has done no work."""
        return ReplicaStats(pid=os.getpid(), profile="none", engine=EngineStats())
