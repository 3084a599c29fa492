"""`aura doctor --invariance`: the numbers of rows between which this machine keeps a row's bits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.lane_counts import (
    LaneCounts,
    LaneKey,
    lane_counts_for,
    made_up_batch,
)
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.networks.conditioning import Conditioner, RowConditioning
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.prepacked import prepack_unet
from serve_app.runtime.networks.row_layers import compute_by_row
from serve_app.runtime.operator_bits import OperatorBits, OperatorCalls

# Pixels: square, odd, wide, and as many latents as a group norm splits over threads.
SIZES = ((128, 128), (104, 152), (160, 96), (256, 256))


@dataclass(frozen=True, slots=True)
class SizeBits:
    """What holds for images of a size, whose batches have up to `rows` rows."""

    width: int
    height: int
    rows: int
    counts: tuple[int, ...]  # that were compared with it
    operators: dict[str, OperatorCalls]  # before any layer computes by row
    kept: tuple[int, ...]  # counts with the same bits, one-line layers computed row by row


@torch.inference_mode()
def examine(
    checkpoint: Checkpoint,
    device: Device,
    images: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Iterator[SizeBits]:
    """Yield what keeps the bits of a row in batches of up to so many guided images, size by size.

    Raises what loading the checkpoint raises.
    """
    *counts, most = lane_counts_for(images, strict=True)
    modules = load(checkpoint, device)
    Placement(modules, device).apply(())
    if device.prepacked:
        prepack_unet(modules.unet, checkpoint.native_latent_shape)
    denoiser = UNetDenoiser(modules.unet, checkpoint.noise_config.preconditioning, device.dtype)
    spec = ImageSpec(prompt="proof", seed=0, width=128, height=128, steps=1, guidance=1.0)
    row = Conditioner(modules.text_encoders, checkpoint).condition(spec).at(0).positive
    found = [_operators(denoiser, row, device, size, most, counts) for size in sizes]
    compute_by_row(modules.unet, device)
    for (width, height), operators in zip(sizes, found, strict=True):
        proved = LaneCounts(denoiser, (*counts, most))
        key = LaneKey((height // 8, width // 8), 1, ())
        batch = partial(made_up_batch, row, key.latent_shape, device.torch_device)
        kept = tuple(count for count in counts if proved.choose(key, count, batch).lanes == count)
        yield SizeBits(width, height, most, tuple(counts), operators, kept)


def _operators(
    denoiser: UNetDenoiser,
    row: RowConditioning,
    device: Device,
    size: tuple[int, int],
    rows: int,
    counts: Sequence[int],
) -> dict[str, OperatorCalls]:
    width, height = size
    x, inputs = made_up_batch(row, (height // 8, width // 8), device.torch_device, rows, rows)
    bits = OperatorBits(rows, counts)
    with bits:
        denoiser(x, inputs, rows)
    return bits.operators
