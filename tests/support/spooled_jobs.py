"""Jobs as a stop leaves them: one image is made, one is on its way, one has not begun."""

from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.sample import (
    Sample,
    for_stage,
    new_sample,
    with_latents,
    with_profile,
)
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.jobs import IdempotencyClaim
from serve_app.core.service.suspicion import Suspicion
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.spool.spooled_job import SpooledJob
from tests.support.engine_runs import NOISE
from tests.support.keys import lora

SPEC = ImageSpec(
    prompt="a fox, 雪",
    seed=7,
    width=64,
    height=64,
    steps=20,
    guidance=5,
    strength=0.7,
    handoff=0.6,
    model="demo",
    extensions=(lora("ink", 0.35),),
)
SOURCE = ImageInputs(bytes(range(256)) * 48)


def spooled_job(id: str = "a" * 32, side: int = 8) -> SpooledJob:
    """Return a job of three images; `side` is that of the latents, which make up its size."""
    schedule = make_schedule(NOISE, SPEC.sampler, SPEC.steps, SPEC.strength, SPEC.handoff)
    latents = np.arange(4 * side * side, dtype=np.float32).reshape(4, side, side) / 7
    states = (latents.astype(np.float16), -latents)
    waiting: Sample[Any] = new_sample(f"{id}-1", SPEC, schedule, Stage.BASE, SOURCE)
    halfway = replace(
        for_stage(with_profile(with_latents(waiting, latents, 3), "base-p"), Stage.REFINER),
        index=15,
        solver_state=states,
        profile="refiner-p",
        warnings=("a word was cut off",),
    )
    done = replace(halfway, latents=None, solver_state=(), index=len(schedule))
    return SpooledJob(
        id=id,
        caller="key:1",
        route="/refine",
        created=1764400000.25,
        claim=IdempotencyClaim("c" * 64, "f" * 64, 7),
        origin="o" * 64,
        request='{"prompt": "a fox"}',
        inputs=(SOURCE, SOURCE, ImageInputs(bytes(64 * 64 * 3))),
        images=(
            ImageSnapshot(done, b"\x89PNG and so on"),
            ImageSnapshot(halfway, suspicion=Suspicion(deaths=2, suspected=1)),
            ImageSnapshot(waiting),
        ),
        webhook="https://example.org/hook",
    )
