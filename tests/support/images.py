"""Images on their way to a replica, and what replicas report of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.replica_report import ReplicaReport
from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind
from serve_app.core.service.tasks import ImageSnapshot

SDXL = ModelKey(Stage.BASE, "sdxl")
STEP = TurnKind(WorkKind.STEP, SDXL, 1024, 1024, 8)
COSTS = CostTable({STEP: 0.1}, {SDXL: BatchSize(4, (8,))})  # seconds


def image(
    id: str,
    steps: int = 20,
    *,
    width: int = 1024,
    model: str = "sdxl",
    loras: tuple[ExtensionRef, ...] = (),
    caller: Caller = NO_CALLER,
) -> Sample[Any]:
    """Return an image that base has not begun."""
    spec = ImageSpec(
        prompt="a",
        seed=1,
        width=width,
        height=1024,
        steps=steps,
        guidance=6.9,
        model=model,
        extensions=loras,
    )
    schedule = make_schedule(NoiseConfig(), spec.sampler, steps, None, 1.0)
    return new_sample(id, spec, schedule, Stage.BASE, caller=caller)


def snapshot_of(id: str, index: int, **values: Any) -> ImageSnapshot:
    """Return an image that base has taken to a step, with latents unless `values` has others."""
    latents = np.zeros((LATENT_CHANNELS, 8, 8), np.float32)
    return ImageSnapshot(replace(image(id), index=index, **({"latents": latents} | values)))


def segment_of(sample: Sample[Any]) -> StageSegment:
    """Return the segment of an image that base generates alone."""
    return StageSegment(Stage.BASE, len(sample.schedule), last=True)


def report_of(
    number: int,
    *samples: Sample[Any],
    models: tuple[ModelKey, ...] = (SDXL,),
    costs: CostTable = COSTS,
    profile: str = "h200",
    measured: Mapping[Caller, float] | None = None,
) -> ReplicaReport:
    """Return the report of a replica that has these images."""
    pending = [PendingWork(sample, segment_of(sample), WorkKind.STEP, due=0) for sample in samples]
    return ReplicaReport.of(number, profile, pending, models, costs, measured or {})
