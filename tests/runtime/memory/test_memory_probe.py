"""Memory plans tried on the demo, with doubles that enforce a device's limit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceFull
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, num_parameters
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.lora import LoraKind
from serve_app.runtime.lane_counts import lane_counts_for
from serve_app.runtime.memory.device import Device, MemoryUsage
from serve_app.runtime.memory.memory_probe import (
    SAVINGS_BY_DEVICE,
    MemoryProbe,
    Placement,
    find_memory_plan,
)
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput, UNetDenoiser
from serve_app.runtime.networks.kept_conditioning import keep_conditioning
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.vae import DecodedImage, RgbImage, SdxlVae
from serve_app.runtime.parts import Parts
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import MeanPixels
from tests.support.engine_runs import run_images

ALL = tuple(MemorySaving)
SMALL = 32  # pixels a side: what fits is scripted, so most plans are tried on small images
WIDE = ImageSpec(
    prompt="a red circle on a blue background", seed=4, width=256, height=144, steps=4, guidance=6.9
)


@dataclass(slots=True)
class LimitedDenoiser:
    """A denoiser that runs out of memory above `max_rows`, until enough savings are applied."""

    denoiser: Denoiser
    placement: Placement
    max_rows: int
    enough_savings: int = 99
    calls: list[tuple[int, ...]] = field(default_factory=list)  # lanes, and the shape of x

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self.calls.append((lanes, *x.shape))
        if lanes > self.max_rows and len(self.placement.applied) < self.enough_savings:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.denoiser(x, inputs, lanes)

    def forget(self) -> None:
        self.denoiser.forget()


@dataclass(slots=True)
class Unfitted:
    """The demo's base on a device with a limit, before a memory plan is chosen."""

    checkpoint: Checkpoint
    device: Device
    placement: Placement
    denoiser: LimitedDenoiser
    parts: Parts

    def probe(
        self,
        *,
        strict: bool = True,
        reserve_for: int = 0,
        lora_bytes: int = 0,
        native_size: int = SMALL,
    ) -> MemoryProbe:
        return MemoryProbe(
            self.parts,
            self.placement,
            self.device,
            native_size=native_size,
            strict=strict,
            reserve_for=reserve_for,
            extension_bytes=lora_bytes,
            extension_work=LoraKind.work_per_pixel if lora_bytes else 0.0,
        )

    def generate(self, spec: ImageSpec, images: int) -> RgbImage:
        self.denoiser.max_rows = 99
        lanes = lane_counts_for(images, strict=True)[-1]
        profile = self.device.numeric_profile(
            Stage.BASE, lanes, self.checkpoint.name, self.placement.applied
        )
        model = StageModel(
            profile=profile, memory_plan=MemoryPlan(images), device=self.device, parts=self.parts
        )
        engine = Engine(ModelCache.of(model), snapshot_every=9)
        return run_images({Stage.BASE: engine}, [(spec, None)])[0]


def unfitted(
    checkpoint: Checkpoint,
    device: Device,
    *,
    max_rows: int,
    enough_savings: int = 99,
    max_tokens: int = 0,
) -> Unfitted:
    modules = load(checkpoint, device)
    keep_conditioning(modules.unet, max_tokens)
    placement = Placement(modules, device)
    unet = UNetDenoiser(modules.unet, checkpoint.noise_config.preconditioning, device.dtype)
    denoiser = LimitedDenoiser(unet, placement, max_rows, enough_savings)
    parts = Parts(
        Conditioner(modules.text_encoders, checkpoint),
        denoiser,
        SdxlVae(modules.vae, device.torch_device),
    )
    return Unfitted(checkpoint, device, placement, denoiser, parts)


@dataclass(frozen=True, slots=True)
class ScriptedDevice(Device):
    """A device whose peak use of memory is scripted, one number of bytes for each measurement."""

    peaks: list[int] = field(default_factory=list)
    limit: int = 100

    def memory_usage(self) -> MemoryUsage:
        return MemoryUsage(self.peaks.pop(0), self.limit)


def scripted_device(peaks: list[int], limit: int = 100) -> ScriptedDevice:
    return ScriptedDevice(
        torch.device("cpu"),
        "cpu",
        torch.float32,
        torch.float32,
        "sdpa",
        1,
        peaks=peaks,
        limit=limit,
    )


UNET, VAE, TEXT = 51, 2, 16  # bytes on the GPU below


@dataclass(frozen=True, slots=True)
class SmallGpu(Device):
    """A GPU with `size` bytes, which counts those that `StatedPlacement` puts on it."""

    size: int = 0
    used: dict[str, int] = field(default_factory=lambda: {"now": 0, "peak": 0})

    def put(self, size: int) -> None:
        self.used["now"] = min(size, self.size)  # modules move one by one, until it is full
        self.used["peak"] = max(self.used["peak"], self.used["now"])
        if size > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def empty_cache(self) -> None:
        self.used["peak"] = self.used["now"]

    def memory_usage(self) -> MemoryUsage:
        return MemoryUsage(self.used["peak"], self.size)


class StatedPlacement(Placement):
    """Modules of stated sizes on a GPU of limited size."""

    @property
    def kept_bytes(self) -> int:
        return 0

    def __init__(self, gpu: SmallGpu) -> None:
        self._gpu = gpu
        self.applied = ()

    def apply(self, savings: tuple[MemorySaving, ...]) -> None:
        self.applied = savings
        text = 0 if MemorySaving.TEXT_ON_CPU in savings else TEXT
        unet = 0 if MemorySaving.UNET_ON_CPU in savings else UNET
        self._gpu.put(VAE + text + unet)

    @property
    def bytes_on_device(self) -> int:
        return self._gpu.used["now"]


@pytest.fixture
def base(checkpoints: dict[Stage, Checkpoint]) -> Checkpoint:
    return checkpoints[Stage.BASE]


@pytest.mark.parametrize(
    ("max_rows", "strict", "images"), [(8, True, 4), (7, True, 2), (3, True, 1), (5, False, 2)]
)
def test_as_many_images_step_together_as_the_device_has_rows_for(
    base: Checkpoint, cpu: Device, max_rows: int, strict: bool, images: int
) -> None:
    model = unfitted(base, cpu, max_rows=max_rows)
    assert find_memory_plan(4, ALL, model.probe(strict=strict)) == MemoryPlan(images)
    assert model.placement.applied == ()


def test_the_probe_runs_the_largest_legal_image(base: Checkpoint, cpu: Device) -> None:
    model = unfitted(base, cpu, max_rows=8)
    find_memory_plan(3, ALL, model.probe(native_size=base.native_size))
    assert model.denoiser.calls == [(8, 3, 4, 144 // 8, 256 // 8)]


@pytest.mark.parametrize(
    "count", [1, *(pytest.param(count, marks=pytest.mark.long) for count in (2, 3)), 4]
)
def test_savings_are_applied_in_order_until_one_image_fits(
    base: Checkpoint, cpu: Device, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = unfitted(base, cpu, max_rows=0, enough_savings=count)
    with caplog.at_level(logging.WARNING):
        assert find_memory_plan(2, ALL, model.probe()) == MemoryPlan(1, ALL[:count])
    assert model.placement.applied == ALL[:count]
    (warning,) = caplog.messages
    assert "2 images at a time" in warning
    assert warning.endswith(f"1 image at a time, {', '.join(ALL[:count])}")


def test_a_plan_must_leave_a_twentieth_of_the_memory_free(base: Checkpoint) -> None:
    device = scripted_device([100, 96, 95])
    probe = unfitted(base, device, max_rows=99).probe()
    assert find_memory_plan(8, ALL, probe) == MemoryPlan(2)
    assert device.peaks == []


@pytest.mark.parametrize(("reserve_for", "images"), [(0, 4), (1, 4), (2, 2)])
def test_memory_is_reserved_for_models_that_load_later(
    base: Checkpoint, cpu: Device, reserve_for: int, images: int
) -> None:
    """The limit is three times the weights and the 500 bytes that two images take to run."""
    weights = unfitted(base, cpu, max_rows=99).placement.bytes_on_device
    assert weights == 4 * sum(num_parameters(base).values())
    device = scripted_device(
        [weights + run for run in (900, 500, 100)], limit=int((3 * weights + 500) / 0.95) + 1
    )
    probe = unfitted(base, device, max_rows=99).probe(reserve_for=reserve_for)
    assert find_memory_plan(4, (), probe) == MemoryPlan(images)


@pytest.mark.parametrize(
    ("reserve_for", "lora_bytes", "images"), [(0, 400, 4), (0, 401, 2), (1, 401, 2)]
)
def test_memory_is_reserved_for_loras_of_this_and_later_models(
    base: Checkpoint, cpu: Device, reserve_for: int, lora_bytes: int, images: int
) -> None:
    width, height = SizeRules(SMALL).largest
    values = 20 * 8 * width * height * 4  # bytes for eight rows of the largest image
    weights = unfitted(base, cpu, max_rows=99).placement.bytes_on_device
    device = scripted_device(
        [weights + run for run in (900, 500, 100)],
        limit=int(((1 + reserve_for) * weights + 1300 + values) / 0.95) + 1,
    )
    probe = unfitted(base, device, max_rows=99).probe(
        reserve_for=reserve_for, lora_bytes=lora_bytes
    )
    assert find_memory_plan(4, (), probe) == MemoryPlan(images)


@pytest.mark.parametrize(("missing", "images"), [(0, 4), (1, 2)])
def test_memory_is_reserved_for_what_later_models_keep(
    base: Checkpoint, cpu: Device, missing: int, images: int
) -> None:
    rows, attention = 8, load(base, cpu).unet.named_modules()
    widths = (m.to_k.out_features for name, m in attention if name.endswith("attn2"))
    kept = rows * ENCODED_TOKENS * 2 * sum(widths) * 4  # keys and values, in bytes
    weights = unfitted(base, cpu, max_rows=99).placement.bytes_on_device
    device = scripted_device(
        [weights + run for run in (900, 500)],
        limit=int((2 * weights + kept + 900) / 0.95) + 1 - missing,
    )
    model = unfitted(base, device, max_rows=99, max_tokens=rows * ENCODED_TOKENS)
    assert find_memory_plan(4, (), model.probe(reserve_for=1)) == MemoryPlan(images)


@pytest.mark.parametrize(("size", "applied"), [(80, 0), (60, 2), (50, 3)])
def test_modules_that_left_the_gpu_are_not_counted(
    base: Checkpoint, cpu: Device, size: int, applied: int
) -> None:
    gpu = SmallGpu(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1, size=size)
    probe = MemoryProbe(
        unfitted(base, cpu, max_rows=99).parts,
        StatedPlacement(gpu),
        gpu,
        native_size=base.native_size,
        strict=True,
        reserve_for=0,
    )
    savings = SAVINGS_BY_DEVICE["cuda"]
    assert find_memory_plan(1, savings, probe) == MemoryPlan(1, savings[:applied])


def test_a_device_on_which_no_plan_fits_says_what_to_do(base: Checkpoint, cpu: Device) -> None:
    with pytest.raises(DeviceFull, match="too little memory for one image") as refused:
        find_memory_plan(2, ALL, unfitted(base, cpu, max_rows=0).probe())
    assert "nvidia-smi" in refused.value.remedy
    assert "MODEL_PRECISION" in refused.value.remedy


def test_an_error_other_than_out_of_memory_is_raised(base: Checkpoint, cpu: Device) -> None:
    model = unfitted(base, cpu, max_rows=8)

    class Broken(MeanPixels):
        def decode(self, latents: torch.Tensor) -> DecodedImage:
            raise RuntimeError("expected all tensors to be on the same device")

    model.parts = Parts(model.parts.conditioner, model.denoiser, Broken())
    with pytest.raises(RuntimeError, match="same device"):
        find_memory_plan(2, ALL, model.probe())


def test_offloading_layers_and_encoders_changes_no_byte(base: Checkpoint, cpu: Device) -> None:
    plain, offloading = unfitted(base, cpu, max_rows=8), unfitted(base, cpu, max_rows=8)
    plain.placement.apply(())
    offloading.placement.apply((MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU))
    assert np.array_equal(plain.generate(WIDE, 1), offloading.generate(WIDE, 1))


def test_sliced_attention_changes_no_more_than_rounding_does(base: Checkpoint, cpu: Device) -> None:
    plain, sliced = unfitted(base, cpu, max_rows=8), unfitted(base, cpu, max_rows=8)
    plain.placement.apply(())
    sliced.placement.apply((MemorySaving.SLICED_ATTENTION,))
    difference = plain.generate(WIDE, 1).astype(int) - sliced.generate(WIDE, 1)
    assert abs(difference).max() <= 2


def test_vae_tiles_change_large_images_alone(base: Checkpoint, cpu: Device) -> None:
    plain, tiled = unfitted(base, cpu, max_rows=8), unfitted(base, cpu, max_rows=8)
    plain.placement.apply(())
    tiled.placement.apply((MemorySaving.VAE_TILES,))
    small = ImageSpec(prompt="a star", seed=4, width=128, height=128, steps=2, guidance=1)
    assert np.array_equal(plain.generate(small, 1), tiled.generate(small, 1))
    whole, in_tiles = plain.generate(WIDE, 1), tiled.generate(WIDE, 1)
    assert not np.array_equal(whole, in_tiles)
    assert abs(whole.astype(int) - in_tiles).mean() < 3  # of 255


def test_memory_savings_are_part_of_the_numeric_profile(cpu: Device) -> None:
    plain = cpu.numeric_profile(Stage.BASE, 2, "sdxl")
    assert plain.name != cpu.numeric_profile(Stage.BASE, 2, "sdxl", (MemorySaving.VAE_TILES,)).name


def test_cuda_never_slices_attention_and_a_cpu_has_no_savings() -> None:
    assert MemorySaving.SLICED_ATTENTION not in SAVINGS_BY_DEVICE["cuda"]
    assert "cpu" not in SAVINGS_BY_DEVICE
