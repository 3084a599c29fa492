"""Conductors over stage doubles, and an image that they make."""

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import (
    GeneratedImage,
    last_image,
)
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.stage_client import StageClient
from tests.support.engine_runs import NOISE

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5, handoff=0.8)


def conductor_of(
    base: StageClient,
    refiner: StageClient | None = None,
    *,
    models: tuple[str, ...] = ("demo",),
    scale_to_zero: tuple[Stage, ...] = (),
) -> Conductor:
    infos = [ModelInfo(name, 64, NOISE) for name in models]
    return Conductor(base, refiner, infos, scale_to_zero=scale_to_zero)


async def generate(
    conductor: Conductor,
    id: str = "a",
    spec: ImageSpec = SPEC,
    init_image: bytes | None = None,
    timeout_s: float | None = None,
) -> GeneratedImage:
    task = ImageTask(id=id, spec=spec, inputs=ImageInputs(init_image), timeout_s=timeout_s)
    return await last_image(conductor.run(task))
