"""One turn of an engine: what a plan asks of the models. No scheduler and no threads."""

import torch

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.scheduling.work import Plan, WorkKind
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import DeviceSample


def run_turn(
    models: ModelCache, plan: Plan[torch.Tensor]
) -> tuple[list[DeviceSample], RgbImage | None]:
    """Return the plan's samples after its turn, and the image of a decode."""
    key = plan.samples[0].model_key
    if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
        if isinstance(plan.load, ExtensionKey):
            evict = [key for key in plan.evict if isinstance(key, ExtensionKey)]
            models.attach(key, plan.load, evict)
        else:
            models.load(key, [key for key in plan.evict if isinstance(key, ModelKey)])
        return list(plan.samples), None
    model = models[key]
    if plan.work is WorkKind.STEP:
        return model.step(plan.samples, plan.lanes), None
    (sample,) = plan.samples
    if plan.work is WorkKind.CONDITION:
        return [model.condition(sample)], None
    if plan.work is WorkKind.ENCODE:
        return [model.encode(sample)], None
    sample, image = model.decode(sample)
    return [sample], image
