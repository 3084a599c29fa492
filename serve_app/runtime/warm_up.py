"""`warm_up`: compile a model for the sizes that most images have, before it is ready.

Each size with each number of rows is compiled anew, which takes from seconds to minutes, or a
moment where an earlier start has left its code on disk.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.spec import PIXELS_PER_LATENT, ImageSpec
from serve_app.core.errors import AuraError, OperatorError
from serve_app.core.service.warm_ups import OnWarmUp, WarmUp
from serve_app.runtime.lane_counts import (
    Batch,
    LaneCounts,
    LaneKey,
    denoise_in_two_orders,
    made_up_batch,
)
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.networks.compiled_unet import CompiledUNet, LatentShape
from serve_app.runtime.parts import Parts

logger = logging.getLogger("aura.runtime")

_MAX_CHARS = 300  # of what torch.compile says


@torch.inference_mode()
def warm_up(
    parts: Parts,
    profile: NumericProfile,
    compiled: CompiledUNet,
    lane_counts: LaneCounts,
    counts: Sequence[int],
    device: torch.device,
    on_progress: OnWarmUp,
) -> None:
    """Compile every size with each of the `counts` of rows, and find out which keep a row's bits.

    `on_progress` is called at the beginning and after each of them. Raises `OperatorError` when
    torch.compile fails, and in strict mode when its code gives a row other bits in another slot.
    """
    parts.extensions.activate((), [NO_INPUTS] * max(counts))
    shapes = sorted(compiled.latent_shapes)
    progress = WarmUp(profile.model, 0, len(shapes) * len(counts))
    on_progress(progress)
    for shape in shapes:
        like = parts.conditioner.condition(_unguided_spec(shape)).at(0).positive
        make_batch = partial(made_up_batch, like, shape, device)
        for count in counts:
            try:
                if profile.strict:
                    lane_counts.choose(LaneKey(shape, 1, ()), count, make_batch)
                _check_slots(parts, profile, shape, make_batch(count, count))
            except Exception as error:
                if isinstance(error, AuraError) or is_out_of_memory(error):
                    raise
                raise _compile_failed(profile, error) from error
            progress = replace(progress, done=progress.done + 1)
            logger.info("%s", progress)
            on_progress(progress)


def _check_slots(parts: Parts, profile: NumericProfile, shape: LatentShape, batch: Batch) -> None:
    """Run a batch, in strict mode in two orders, and compare them bit by bit."""
    x, inputs = batch
    if not profile.strict:
        parts.denoiser(x, inputs, len(inputs))
        return
    _, same = denoise_in_two_orders(parts.denoiser, batch)
    if not same:
        height, width = (side * PIXELS_PER_LATENT for side in shape)
        raise OperatorError(
            f"MODEL_DETERMINISM=strict can't be kept with {len(inputs)} lanes at {width} x "
            f"{height}: compiled, a picture's bits would depend on its neighbours",
            subject=f"MODEL_COMPILE={profile.compile}",
            remedy="Set MODEL_COMPILE=off, or MODEL_DETERMINISM=fast",
        )


def _compile_failed(profile: NumericProfile, error: Exception) -> OperatorError:
    text = " ".join(str(error).split())[:_MAX_CHARS]
    return OperatorError(
        f"torch.compile fails with {type(error).__name__}: {text}",
        subject=f"MODEL_COMPILE={profile.compile}",
        remedy="Set MODEL_COMPILE=off",
    )


def _unguided_spec(shape: LatentShape) -> ImageSpec:
    height, width = (side * PIXELS_PER_LATENT for side in shape)
    return ImageSpec(prompt="warm-up", seed=0, width=width, height=height, steps=1, guidance=1.0)
