"""Replicas whose networks sleep for a stated time: real engine, Ray and HTTP, pretended GPUs."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.numeric_profile import NumericProfile
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
from serve_app.runtime.parts import Parts
from serve_app.runtime.previews import LatentToRgb
from serve_app.runtime.stage_model import StageModel
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_networks import (
    NOISE,
    SCALE,
    SleepingConditioner,
    SleepingDenoiser,
    SleepingTextEncoders,
    SleepingVae,
)

NATIVE_SIZE = 1024 // SCALE  # pixels a side


class SleepingStage(StageReplica):
    """A replica that is real but for its networks."""

    def __init__(
        self,
        config: StageConfig,
        speed: GpuSpeed,
        meter: Callable[[], Meter] = InMemoryMeter,
        strikes: Path | None = None,
    ) -> None:
        super().__init__(config, meter, load=partial(_load_models, speed, strikes))


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


def service_info(*, refiner: bool) -> ServiceInfo:
    """Return what the service says of itself."""
    return ServiceInfo(
        models=(ModelInfo(str(Stage.BASE), NATIVE_SIZE, NOISE),),
        refiner=str(Stage.REFINER) if refiner else None,
        device="none",
        precision="none",
        default_image_count=1,
    )


def ingress_config(
    *,
    refiner: bool,
    max_total_replicas: int | None = None,
    access_policy: AccessPolicy | None = None,
    caller_weights: Mapping[str, float] | None = None,
    spool: Path | None = None,
) -> IngressConfig:
    """Return the config of the ingress in front of sleeping replicas."""
    info = service_info(refiner=refiner)
    config = HttpConfig(
        info=info,
        access_policy=access_policy or AccessPolicy(),
        caller_weights=caller_weights or {},
        spool=spool,
    )
    return IngressConfig(
        partial(open_ingress, config),
        info.models,
        info.refiner,
        max_total_replicas=max_total_replicas,
    )


def _load_models(speed: GpuSpeed, strikes: Path | None, config: StageConfig) -> ModelCache:
    """Return a cache of the config's models, with networks that sleep."""
    loaders: dict[ModelKey, Any] = {
        source.key: partial(
            _load_model, speed, strikes, source.stage, source.name, config.max_batch_images
        )
        for source in config.models
    }
    return ModelCache(loaders, capacity=config.max_loaded_models)


def _load_model(
    speed: GpuSpeed,
    strikes: Path | None,
    stage: Stage,
    name: str,
    images: int,
    reserve_for: int,
    previous_plan: MemoryPlan | None,
) -> StageModel:
    """Return a model with networks that sleep. The last two parameters are a `Loader`'s."""
    model = sleeping_model(speed, stage, name, images, strikes)
    model.record_self_test()
    return model


def sleeping_model(
    speed: GpuSpeed,
    stage: Stage,
    name: str,
    images: int,
    strikes: Path | None = None,
) -> StageModel:
    """Return a model with networks that sleep; see `SleepingDenoiser` for `strikes`."""
    device = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
    checkpoint = Checkpoint(
        stage, Path(), name, CheckpointScheduler(NOISE), NATIVE_SIZE, False, True
    )
    profile = NumericProfile(
        stage, "none", "float32", "float32", "none", 2 * images, (), 1, "none", name
    )
    parts = Parts(
        SleepingConditioner(SleepingTextEncoders(speed), checkpoint),
        SleepingDenoiser(stage, speed, strikes),
        SleepingVae(speed),
        latent_to_rgb=LatentToRgb(torch.eye(3, 4), torch.full((3,), 0.5)),
    )
    return StageModel(profile=profile, memory_plan=MemoryPlan(images), device=device, parts=parts)
