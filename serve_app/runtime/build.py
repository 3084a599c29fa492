"""From a checkpoint and a few wishes to a model that is ready to step: the runtime's front door.

Knows no settings files and no Ray: used by a replica, a test and a benchmark alike.
"""

import logging
from collections.abc import Mapping

from serve_app.core.scheduling.memory_plan import Fit
from serve_app.core.service.moderation import SafetyFilter
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import LoraFile
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import LADDERS, Placement, Trial, fitted, lanes_for
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.lora_adapters import PeftAdapters
from serve_app.runtime.networks.vae import VaePixels
from serve_app.runtime.stage_model import Parts, StageModel

logger = logging.getLogger("aura.runtime")


def assemble(
    checkpoint: Checkpoint,
    device: Device,
    to_come: int = 0,
    before: Fit | None = None,
    *,
    images: int,
    strict: bool,
    safety: SafetyFilter | None = None,
    loras: Mapping[str, LoraFile] | None = None,
    lora_room: int = 1,
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
        Conditioner(modules.prompts, checkpoint),
        UNetDenoiser(modules.unet, checkpoint.noise.prediction_type, device.dtype),
        VaePixels(modules.vae, device.torch_device),
        PeftAdapters(modules, loras) if loras else None,
    )
    ladder = LADDERS.get(device.torch_device.type)
    if ladder is None:  # a CPU pages, and a step of the largest picture would take it minutes
        found = Fit(images)
        placement.take(())
    else:
        numbers = sorted(file.numbers for file in (loras or {}).values())
        trial = Trial(
            parts,
            placement,
            device,
            native=checkpoint.native,
            strict=strict,
            to_come=to_come,
            loras=sum(numbers[-lora_room:]) * device.dtype.itemsize,
        )
        found = fitted(images, ladder, trial, before)
    lanes = lanes_for(found.images, strict=strict)
    model = StageModel(
        profile=device.profile(checkpoint.stage, lanes, checkpoint.name, found.rungs),
        fit=found,
        device=device,
        parts=parts,
        safety=safety,
        parking=placement,
    )
    model.prove_lanes()
    logger.info("%s is ready as %s: %s", checkpoint.name, checkpoint.stage, model.profile)
    return model
