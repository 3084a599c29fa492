"""A whole model on the device: loading, images, the VAE, memory savings, and the swap."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from serve_app.bench.gpu.timing import median_seconds
from serve_app.core.diffusion.spec import LATENT_CHANNELS, PIXELS_PER_LATENT, ImageSpec
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import MemoryProbe, Placement
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.parts import Parts

_GUIDANCE = 6.9


@dataclass(frozen=True, slots=True)
class EngineTime:
    """Images through the engine, prompt to pixels."""

    mode: str  # strict or fast
    images: int  # at a time
    seconds: float
    tflops: float  # of the UNet's steps alone, per second
    equals_alone: bool  # whether the first image has the bytes that it has alone


@dataclass(frozen=True, slots=True)
class Rung:
    """A memory plan and the most that its work took."""

    savings: tuple[str, ...]
    images: int
    fits: bool
    peak: int  # bytes; 0 where it is not measured


@dataclass(frozen=True, slots=True)
class Swap:
    """Seconds of a model's way off the device and back, and its bytes there."""

    load_seconds: float  # from the disk, with all checks
    offload_seconds: float
    restore_seconds: float
    peak: int  # bytes, after the model is back; 0 where it is not measured


@torch.inference_mode()
def vae_seconds(modules: Modules, device: Device, side: int, runs: int) -> float:
    """Return the time of the decode of one image."""
    latents = torch.zeros(
        LATENT_CHANNELS,
        side // PIXELS_PER_LATENT,
        side // PIXELS_PER_LATENT,
        device=device.torch_device,
    )
    codec = SdxlVae(modules.vae.to(device.torch_device), device.torch_device)
    return median_seconds(device, partial(codec.decode, latents), runs)


def engine_times(
    checkpoint: Checkpoint,
    device: Device,
    side: int,
    steps: int,
    images: int,
    flops: int,
    runs: int,
) -> Iterator[EngineTime]:
    """Yield the times of one guided image and of `images` together, strict and fast.

    `flops` is the work of one row.
    """
    modules = load(checkpoint, device)
    specs = [
        ImageSpec(
            prompt=f"image {seed}",
            seed=seed,
            width=side,
            height=side,
            steps=steps,
            guidance=_GUIDANCE,
        )
        for seed in range(images)
    ]
    for strict in (False, True):  # strict mode changes some layers of the modules
        pipeline = LocalPipeline(
            [checkpoint], device, images=images, strict=strict, load_modules=lambda *_: modules
        )
        alone = pipeline.generate(specs[:1])[0]
        pipeline.generate(specs)
        for count in dict.fromkeys((1, images)):
            start = time.perf_counter()
            for _ in range(runs):
                first = pipeline.generate(specs[:count])[0]
            seconds = (time.perf_counter() - start) / runs
            tflops = 2 * count * steps * flops / seconds / 1e12
            equals = bool(np.array_equal(first, alone))
            yield EngineTime("strict" if strict else "fast", count, seconds, tflops, equals)


def memory_ladder(
    checkpoint: Checkpoint, device: Device, savings: Sequence[MemorySaving], images: int
) -> Iterator[Rung]:
    """Yield what each rung of the memory savings takes: every kind of work on the largest image."""
    modules = load(checkpoint, device)
    placement = Placement(modules, device)
    parts = Parts(
        Conditioner(modules.text_encoders, checkpoint),
        UNetDenoiser(modules.unet, checkpoint.noise_config.preconditioning, device.dtype),
        SdxlVae(modules.vae, device.torch_device, checkpoint.latent_scaling),
    )
    probe = MemoryProbe(
        parts,
        placement,
        device,
        native_size=checkpoint.native_size,
        strict=True,
        reserve_for=0,
    )
    for number in range(len(savings) + 1):
        plan = MemoryPlan(images, tuple(savings[:number]))
        fits, usage = probe(plan), device.memory_usage()
        yield Rung(tuple(map(str, plan.savings)), images, fits, usage.peak if usage else 0)


def swap(checkpoint: Checkpoint, device: Device, runs: int) -> Swap:
    """Return the times of a model that is parked in pinned memory and comes back."""
    start = time.perf_counter()
    model = build_stage_model(checkpoint, device, images=1, strict=False)
    device.synchronize()
    loaded = time.perf_counter() - start
    model.offload()  # the first makes the copies
    model.restore()
    device.empty_cache()
    seconds: list[tuple[float, float]] = []
    for _ in range(runs):
        start = time.perf_counter()
        model.offload()
        device.synchronize()
        middle = time.perf_counter()
        model.restore()
        device.synchronize()
        seconds.append((middle - start, time.perf_counter() - middle))
    usage = device.memory_usage()
    offload, restore = (sum(times) / runs for times in zip(*seconds, strict=True))
    return Swap(loaded, offload, restore, usage.peak if usage else 0)
