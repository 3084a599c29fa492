"""Replicas whose networks sleep for a stated time: real engine, Ray and HTTP, pretended GPUs.

A size in pixels counts as one `SCALE` times as wide and high, so that latents and images are small
and nothing but the sleep takes time.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.metrics import InMemoryMeter, Meter
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.deployments.stage_replica import StageReplica
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
NATIVE_SIZE = 1024 // SCALE  # pixels a side
_NOISE = NoiseConfig.from_scheduler_config({})


class SleepingDenoiser:
    """A `Denoiser` that takes the stated time and returns zeros."""

    def __init__(self, stage: Stage, speed: GpuSpeed) -> None:
        self._stage, self._speed = stage, speed

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """Sleep for one step, then return the denoised latents."""
        height, width = (8 * SCALE * side for side in x.shape[-2:])
        time.sleep(self._speed.step(self._stage, width, height, lanes))
        return torch.zeros_like(x)


class SleepingVae:
    """An `ImageCodec` that takes the stated time and returns a small grey image."""

    def __init__(self, speed: GpuSpeed) -> None:
        self._speed = speed

    def decode(self, latents: torch.Tensor) -> RgbImage:
        """Sleep for one decode, then return the image."""
        height, width = (8 * SCALE * side for side in latents.shape[-2:])
        time.sleep(self._speed.decode(width, height))
        return np.full((8, 8, 3), 128, np.uint8)

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """Sleep for as long as a decode, then return latents."""
        time.sleep(self._speed.decode(SCALE * image.shape[1], SCALE * image.shape[0]))
        return torch.zeros_like(posterior_noise)


class SleepingTextEncoders:
    """`TextEncoders` that take the stated time and return zeros."""

    def __init__(self, speed: GpuSpeed) -> None:
        self._speed = speed

    def tokenize(self, prompt: str, name: str) -> TokenizedPrompt:
        """Return an empty prompt."""
        return TokenizedPrompt(((),), ())

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sleep for one prompt, then return embeddings and the pooled embedding."""
        time.sleep(self._speed.prompt_seconds)
        return torch.zeros(77 * chunks, 8), torch.zeros(4)


class SleepingStage(StageReplica):
    """A replica that is real but for its networks."""

    def __init__(
        self, config: StageConfig, speed: GpuSpeed, meter: Callable[[], Meter] = InMemoryMeter
    ) -> None:
        super().__init__(config, meter, load=partial(_load_models, speed))


def stage_config(*stages: Stage, images: int) -> StageConfig:
    """Return the config of a sleeping replica that batches up to `images` images."""
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


def ingress_config(*, refiner: bool, max_total_replicas: int | None = None) -> IngressConfig:
    """Return the config of the ingress in front of sleeping replicas."""
    info = ServiceInfo(
        models=(ModelInfo(str(Stage.BASE), NATIVE_SIZE, _NOISE),),
        refiner=str(Stage.REFINER) if refiner else None,
        device="none",
        precision="none",
        default_image_count=1,
    )
    http = partial(open_ingress, HttpConfig(info=info, access_policy=AccessPolicy()))
    return IngressConfig(http, info.models, info.refiner, max_total_replicas=max_total_replicas)


def _load_models(speed: GpuSpeed, config: StageConfig) -> ModelCache:
    """Return a cache of the config's models, with networks that sleep."""
    loaders: dict[ModelKey, Any] = {
        source.key: partial(_load_model, speed, source.stage, source.name, config.max_batch_images)
        for source in config.models
    }
    return ModelCache(loaders, capacity=config.max_loaded_models)


def _load_model(
    speed: GpuSpeed,
    stage: Stage,
    name: str,
    images: int,
    reserve_for: int,
    previous_plan: MemoryPlan | None,
) -> StageModel:
    """Return a model with networks that sleep. The last two parameters are a `Loader`'s."""
    device = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
    checkpoint = Checkpoint(
        stage, Path(), name, CheckpointScheduler(_NOISE), NATIVE_SIZE, False, True
    )
    profile = NumericProfile(
        stage, "none", "float32", "float32", "none", 2 * images, (), 1, "none", name
    )
    parts = Parts(
        Conditioner(SleepingTextEncoders(speed), checkpoint),
        SleepingDenoiser(stage, speed),
        SleepingVae(speed),
    )
    return StageModel(profile=profile, memory_plan=MemoryPlan(images), device=device, parts=parts)
