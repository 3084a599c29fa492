"""Engines over a model with LoRAs, and images that ask for them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import LoraFile
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.engine_runs import run_images
from tests.support.extension_files import lora_files
from tests.support.keys import base_key, lora

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=5, guidance=5)
Files = dict[str, LoraFile]


def engine_over(
    checkpoint: Checkpoint, device: Device, files: Mapping[str, LoraFile], capacity: int = 2
) -> Engine:
    make = partial(
        build_stage_model,
        checkpoint,
        device,
        images=2,
        strict=True,
        extensions=lora_files(files, capacity=capacity),
    )
    ticks = count()  # one second per reading, so that every step has its snapshot
    cache = ModelCache({base_key("demo"): make}, extension_capacity=capacity)
    return Engine(cache, snapshot_every=1, clock=lambda: float(next(ticks)))


def with_loras(*loras: tuple[str, float], **others: Any) -> ImageSpec:
    return replace(SPEC, extensions=tuple(lora(*pair) for pair in loras), **others)


def generate(engine: Engine, *specs: ImageSpec) -> list[bytes]:
    return [p.tobytes() for p in run_images({Stage.BASE: engine}, [(spec, None) for spec in specs])]
