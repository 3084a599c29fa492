"""Step times of the UNet by size, rows, precision and option, and what they are of the ceiling."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from serve_app.bench.gpu.timing import median_seconds
from serve_app.bench.made_up_step import made_up_step
from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.network_weights import read_config
from serve_app.runtime.lane_counts import Batch
from serve_app.runtime.memory.device import DTYPES, Device, is_out_of_memory
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.kept_conditioning import (
    keep_conditioning,
    stop_keeping,
)
from serve_app.runtime.networks.loading import load_unet
from serve_app.runtime.networks.quantization import quantization_problem, quantize_unet
from serve_app.runtime.networks.quiet import diffusers
from serve_app.runtime.networks.twin import twin

EAGER, FUSED_QKV = "eager", "fused QKV"
KEPT, CHANNELS_LAST = "conditioning kept", "channels-last"
REGIONS, FULL, GRAPHS = "compiled regions", "compiled", "compiled, CUDA graphs"
EIGHT_BITS = {mode: f"compiled regions, {mode}" for mode in ("int8", "fp8")}
OPTIONS = (EAGER, FUSED_QKV, KEPT, CHANNELS_LAST, REGIONS, *EIGHT_BITS.values(), FULL, GRAPHS)
COMPILED = (REGIONS, *EIGHT_BITS.values(), FULL, GRAPHS)


@dataclass(frozen=True, slots=True)
class StepTime:
    """The time of a step, None where memory ran out."""

    precision: str
    option: str
    side: int
    rows: int
    seconds: float | None
    tflops: float  # per second
    warm_up_seconds: float  # the first call, with its compilation


def flops_per_row(checkpoint: Checkpoint, side: int) -> int:
    """Return the floating-point operations of one row: matrix products and convolutions."""
    options = read_config(checkpoint.folder, "unet").model_dump()
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(options)
    x, (point,) = made_up_step(checkpoint, side, 1, torch.float32)
    row = point.conditioning.positive
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet(
            x.to("meta"),
            torch.ones(1, device="meta"),
            encoder_hidden_states=row.embeds[None].to("meta"),
            added_cond_kwargs={
                "text_embeds": row.pooled[None].to("meta"),
                "time_ids": row.time_ids[None].to("meta"),
            },
        )
    return int(counter.get_total_flops())


@torch.inference_mode()
def step_times(
    checkpoint: Checkpoint,
    device: Device,
    precision: str,
    sides: Sequence[int],
    rows: Sequence[int],
    options: Sequence[str] = OPTIONS,
    runs: int = 5,
) -> Iterator[StepTime]:
    """Yield the times of a step, option by option.

    Compiled ones are only measured at the first size, for the first number of rows and the last:
    each shape is compiled anew. What the device can't do is left out.
    """
    dtype = DTYPES[precision]
    unet = load_unet(checkpoint, dtype).to(device.torch_device)
    flops = {side: flops_per_row(checkpoint, side) for side in sides}
    lacking = {
        label
        for mode, label in EIGHT_BITS.items()
        if quantization_problem(mode, device.torch_device)
    }
    for option in options:
        if option in lacking:
            continue
        network = _with_option(unet, option, max(rows) * ENCODED_TOKENS)
        denoiser = UNetDenoiser(network, checkpoint.noise_config.preconditioning, dtype)
        few = option in COMPILED
        for side in sides[:1] if few else sides:
            for count in dict.fromkeys((rows[0], rows[-1])) if few else rows:
                found = _measure(
                    denoiser, made_up_step(checkpoint, side, count, dtype), device, runs
                )
                if found is None:
                    yield StepTime(precision, option, side, count, None, 0.0, 0.0)
                else:
                    warm_up, seconds = found
                    tflops = count * flops[side] / seconds / 1e12
                    yield StepTime(precision, option, side, count, seconds, tflops, warm_up)


def _measure(
    denoiser: UNetDenoiser, batch: Batch, device: Device, runs: int
) -> tuple[float, float] | None:
    """Return the seconds of the first step and of those after it; None if memory runs out."""
    x, inputs = batch
    step = partial(denoiser, x.to(device.torch_device), inputs, len(inputs))
    start = time.perf_counter()
    try:
        step()
        device.synchronize()
        warm_up = time.perf_counter() - start
        return warm_up, median_seconds(device, step, runs)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    device.empty_cache()
    return None


def _with_option(unet: Any, option: str, max_tokens: int) -> Any:
    """Return the UNet with an option; what is not compiled stays for those after it, but one.

    Fused projections are other weights, of a copy.
    """
    if option == FUSED_QKV:
        fused = twin(unet)
        fused.fuse_qkv_projections()
        return fused
    if option == KEPT:
        keep_conditioning(unet, max_tokens)
    elif option == CHANNELS_LAST:
        unet.to(memory_format=torch.channels_last)
    elif option in COMPILED:
        torch.compiler.reset()
        stop_keeping(unet)
        compiled = twin(unet)
        for quantization, label in EIGHT_BITS.items():
            if option == label:
                quantize_unet(compiled, quantization)
        if option == REGIONS or option in EIGHT_BITS.values():
            compiled.compile_repeated_blocks(dynamic=False)
        else:
            mode = "reduce-overhead" if option == GRAPHS else None
            compiled.compile(dynamic=False, mode=mode)
        return compiled
    return unet
