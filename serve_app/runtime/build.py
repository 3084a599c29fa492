"""From a checkpoint and a few wishes to a model that is ready to step: the runtime's front door.

Knows no settings files and no Ray: used by a replica, a test and a benchmark alike.
"""

import logging
from collections.abc import Mapping

from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.service.moderation import SafetyFilter
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import LoraFile
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import (
    SAVINGS_BY_DEVICE,
    MemoryProbe,
    Placement,
    find_memory_plan,
    lanes_for,
)
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.lora_adapters import PeftLoraAdapters
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.stage_model import Parts, StageModel

logger = logging.getLogger("aura.runtime")


def build_stage_model(
    checkpoint: Checkpoint,
    device: Device,
    reserve_for: int = 0,
    previous_plan: MemoryPlan | None = None,
    *,
    images: int,
    strict: bool,
    safety: SafetyFilter | None = None,
    loras: Mapping[str, LoraFile] | None = None,
    lora_capacity: int = 1,
) -> StageModel:
    """The stage's model, loaded, and fitted to the device's memory where that has an end.

    At most `images` guided images step together, with room left for as many models like this one
    as are `to_come`, and for the largest `lora_room` of its `loras`; one that was here `before` is
    fitted as it was then, if that still holds. In strict mode it has been proved to keep its
    promise here. Raises `OperatorError` when that can't be kept, `DeviceFull` when not even one
    image has room.
    """
    modules = load(checkpoint, device)
    placement = Placement(modules, device)
    parts = Parts(
        Conditioner(modules.text_encoders, checkpoint),
        UNetDenoiser(modules.unet, checkpoint.noise_config.prediction_type, device.dtype),
        SdxlVae(modules.vae, device.torch_device),
        PeftLoraAdapters(modules, loras) if loras else None,
    )
    ladder = SAVINGS_BY_DEVICE.get(device.torch_device.type)
    if ladder is None:  # a CPU pages, and a step of the largest picture would take it minutes
        found = MemoryPlan(images)
        placement.apply(())
    else:
        numbers = sorted(file.num_parameters for file in (loras or {}).values())
        trial = MemoryProbe(
            parts,
            placement,
            device,
            native_size=checkpoint.native_size,
            strict=strict,
            reserve_for=reserve_for,
            lora_bytes=sum(numbers[-lora_capacity:]) * device.dtype.itemsize,
        )
        found = find_memory_plan(images, ladder, trial, previous_plan)
    lanes = lanes_for(found.images, strict=strict)
    model = StageModel(
        profile=device.numeric_profile(checkpoint.stage, lanes, checkpoint.name, found.savings),
        memory_plan=found,
        device=device,
        parts=parts,
        safety=safety,
        offloadable=placement,
    )
    model.check_batch_invariance()
    logger.info("%s is ready as %s: %s", checkpoint.name, checkpoint.stage, model.profile)
    return model
