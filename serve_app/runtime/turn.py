"""One turn of an engine: what a plan asks of the models. No scheduler and no threads."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.overdue import CurrentTurn
from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.scheduling.work import Plan, WorkKind
from serve_app.runtime.live_sample import DeviceSample
from serve_app.runtime.memory.device import DeviceEvent
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.previews import StepPreviews, step_previews


@dataclass(frozen=True, slots=True)
class LaunchedTurn:
    """What a turn has done; of a step, what it will have done when its event has happened."""

    plan: Plan[torch.Tensor]
    samples: list[DeviceSample]  # after the turn
    lanes: int = 0  # of the UNet call of a step, which may be others than planned
    image: RgbImage | None = None  # of a decode
    is_usual: bool = True  # whether such a turn will take as long again
    event: DeviceEvent | None = None  # None if there is nothing to wait for
    charged: float | None = None  # seconds, if it was settled before it was done
    previews: StepPreviews | None = None  # of a step, of samples that somebody watches


def current_turn(
    models: ModelCache, plan: Plan[torch.Tensor], now: float, costs: CostTable
) -> CurrentTurn:
    """Return the turn of a plan that begins now, with the limits of its length."""
    if plan.work is WorkKind.STEP and not models[plan.samples[0].model_key].knows_lanes(
        plan.samples
    ):
        return CurrentTurn.unknown(now)
    return CurrentTurn.of(plan, now, costs)


def run_turn(
    models: ModelCache, plan: Plan[torch.Tensor], watched: Collection[str] = ()
) -> LaunchedTurn:
    """Run a plan; of a step, only until the device has it to do.

    `watched` are the ids of the samples of which there should be previews.
    """
    key = plan.samples[0].model_key
    if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
        if isinstance(plan.load, ExtensionKey):
            evict = [key for key in plan.evict if isinstance(key, ExtensionKey)]
            models.attach(key, plan.load, evict)
        else:
            models.load(key, [key for key in plan.evict if isinstance(key, ModelKey)])
        return LaunchedTurn(plan, list(plan.samples))
    model = models[key]
    if plan.work is WorkKind.STEP:
        choice, previews = model.choose_lanes(plan.samples), None

        def observe(denoised: torch.Tensor) -> None:
            nonlocal previews
            previews = step_previews(plan.samples, watched, denoised, model.latent_to_rgb)

        samples = model.step(plan.samples, choice.lanes, observe)
        return LaunchedTurn(
            plan,
            samples,
            choice.lanes,
            is_usual=not choice.is_new,
            event=models.device.record_event(),
            previews=previews,
        )
    (sample,) = plan.samples
    if plan.work is WorkKind.CONDITION:
        return LaunchedTurn(plan, [model.condition(sample)])
    if plan.work is WorkKind.ENCODE:
        return LaunchedTurn(plan, [model.encode(sample)])
    sample, image = model.decode(sample)
    return LaunchedTurn(plan, [sample], image=image)
