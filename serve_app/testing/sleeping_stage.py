"""Stages whose networks sleep for a stated time: the real engine, Ray and HTTP on GPUs that are not
there, in numbers that this machine could never hold.

Knows no load and no policy. A size in pixels counts as one `SCALE` times as wide and high, so that
latents and pictures are small and nothing but the sleep takes time.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import Lora, Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.metrics import InMemoryMeter, Meter
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.deployments.stage_replica import ModelSource, StageConfig, StageReplica
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import Parts, StageModel
from serve_app.simulator.gpu_speed import GpuSpeed

SCALE = 4
NATIVE = 1024 // SCALE  # pixels a side
_NOISE = NoiseConfig.from_scheduler_config({})


class SleepingDenoiser:
    """Every picture is grey, and takes the stated time."""

    def __init__(self, stage: Stage, costs: GpuSpeed) -> None:
        self._stage, self._costs = stage, costs

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """See `Denoiser`."""
        height, width = (8 * SCALE * side for side in x.shape[-2:])
        time.sleep(self._costs.step(self._stage, width, height, lanes))
        return torch.zeros_like(x)


class SleepingVae:
    """A picture as small as can be, after the stated time."""

    def __init__(self, costs: GpuSpeed) -> None:
        self._costs = costs

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """See `Pixels`."""
        height, width = (8 * SCALE * side for side in latents.shape[-2:])
        time.sleep(self._costs.decode(width, height))
        return np.full((8, 8, 3), 128, np.uint8)

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """See `Pixels`; as long as a decode."""
        time.sleep(self._costs.decode(SCALE * picture.shape[1], SCALE * picture.shape[0]))
        return torch.zeros_like(posterior_noise)


class SleepingTextEncoders:
    """Every prompt says nothing, after the stated time."""

    def __init__(self, costs: GpuSpeed) -> None:
        self._costs = costs

    def tokenize(self, prompt: str, name: str) -> TokenizedPrompt:
        """See `Prompts`."""
        return TokenizedPrompt(((),), ())

    def encode(
        self, reading: TokenizedPrompt, chunks: int, loras: tuple[Lora, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Prompts`."""
        time.sleep(self._costs.prompt_seconds)
        return torch.zeros(77 * chunks, 8), torch.zeros(4)


class SleepingStage(StageReplica):
    """A replica like any other, but for its model."""

    def __init__(
        self, config: StageConfig, costs: GpuSpeed, meter: Callable[[], Meter] = InMemoryMeter
    ) -> None:
        super().__init__(config, meter, load=partial(_shelf, costs))


def stage_config(*stages: Stage, images: int) -> StageConfig:
    """What such a replica is told: so many images step together."""
    return StageConfig(
        models=tuple(ModelSource(str(stage), None, stage=stage) for stage in stages),
        device="cpu",
        precision=None,
        xformers=False,
        cpu_threads=1,
        max_batch_images=images,
        strict=True,
        snapshot_interval_steps=5,
        max_loaded_models=len(stages),
    )


def ingress_config(*, refiner: bool, pool: int | None = None) -> IngressConfig:
    """What the ingress before them is told; of its stages, `pool` replicas may be there."""
    facts = ServiceInfo(
        models=(ModelInfo(str(Stage.BASE), NATIVE, _NOISE),),
        refiner=str(Stage.REFINER) if refiner else None,
        device="none",
        precision="none",
        default_image_count=1,
    )
    http = partial(open_ingress, HttpConfig(info=facts, access_policy=AccessPolicy()))
    return IngressConfig(http, facts.models, facts.refiner, max_total_replicas=pool)


def _shelf(costs: GpuSpeed, config: StageConfig) -> ModelCache:
    makers: dict[ModelKey, Any] = {
        source.key: partial(_model, costs, source.stage, source.name, config.max_batch_images)
        for source in config.models
    }
    return ModelCache(makers, capacity=config.max_loaded_models)


def _model(
    costs: GpuSpeed, stage: Stage, name: str, images: int, to_come: int, before: MemoryPlan | None
) -> StageModel:
    device = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
    checkpoint = Checkpoint(stage, Path(), name, _NOISE, NATIVE, None, False, True)
    profile = NumericProfile(
        stage, "none", "float32", "float32", "none", 2 * images, (), 1, "none", name
    )
    parts = Parts(
        Conditioner(SleepingTextEncoders(costs), checkpoint),
        SleepingDenoiser(stage, costs),
        SleepingVae(costs),
    )
    return StageModel(profile=profile, memory_plan=MemoryPlan(images), device=device, parts=parts)
