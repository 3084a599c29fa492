"""The demo's models, loaded once per session, and fresh engines over them."""

import numpy as np
import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.demo_models import IMAGES, Engines
from tests.support.reference_diffusers import Stock

_FAST_IMAGES = 16  # that step together in fast mode


@pytest.fixture(scope="session")
def cpu() -> Device:
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=2)


@pytest.fixture(scope="session")
def models(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> dict[str, dict[Stage, StageModel]]:
    """Load base and refiner, in strict and in fast mode."""
    return {
        mode: {
            stage: build_stage_model(checkpoint, cpu, images=images, strict=mode == "strict")
            for stage, checkpoint in checkpoints.items()
        }
        for mode, images in (("strict", IMAGES), ("fast", _FAST_IMAGES))
    }


@pytest.fixture(scope="session")
def engines(models: dict[str, dict[Stage, StageModel]]) -> Engines:
    """Return a function that makes unused engines, for the base alone unless `refiner=True`."""

    def make(mode: str = "strict", *, refiner: bool = False) -> dict[Stage, Engine]:
        stages = (Stage.BASE, Stage.REFINER) if refiner else (Stage.BASE,)
        return {
            stage: Engine(ModelCache.of(models[mode][stage]), snapshot_every=1) for stage in stages
        }

    return make


@pytest.fixture(scope="session")
def stock(checkpoints: dict[Stage, Checkpoint]) -> Stock:
    return Stock.over(checkpoints)


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Return an init image of 128 x 128 as RGB bytes: smooth shades with an edge."""
    y, x = np.mgrid[0:128, 0:128]
    shades = np.stack([x * 2, y * 2, np.where(x > y, 220, 30)], axis=-1)
    return shades.astype(np.uint8).tobytes()
