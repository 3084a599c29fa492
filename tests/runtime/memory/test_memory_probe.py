"""Set-ups tried on the demo, with a limit on rows that a double keeps as a device would."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceFull
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, num_parameters
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device, MemoryUsage, is_out_of_memory
from serve_app.runtime.memory.memory_probe import (
    SAVINGS_BY_DEVICE,
    MemoryProbe,
    Placement,
    find_memory_plan,
    lanes_for,
)
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput, UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.vae import RgbImage, SdxlVae
from serve_app.runtime.stage_model import Parts, StageModel
from tests.support.analytic_model import MeanPixels
from tests.support.engine_runs import walk

ALL = tuple(MemorySaving)
WIDE = ImageSpec(
    prompt="a red circle on a blue background", seed=4, width=256, height=144, steps=4, guidance=6.9
)


@dataclass(slots=True)
class Small:
    """A device's limit: so many rows, but for one who has taken enough rungs."""

    denoiser: Denoiser
    placement: Placement
    rows: int
    rungs: int = 99
    seen: list[tuple[int, ...]] = field(default_factory=list)  # lanes, and the shape of x

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self.seen.append((lanes, *x.shape))
        if lanes > self.rows and len(self.placement.applied) < self.rungs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.denoiser(x, inputs, lanes)


@dataclass(slots=True)
class Built:
    """The demo's base on a small device, not fitted yet."""

    checkpoint: Checkpoint
    device: Device
    placement: Placement
    small: Small
    parts: Parts

    def trial(self, *, strict: bool = True, to_come: int = 0, loras: int = 0) -> MemoryProbe:
        return MemoryProbe(
            self.parts,
            self.placement,
            self.device,
            native_size=self.checkpoint.native_size,
            strict=strict,
            reserve_for=to_come,
            lora_bytes=loras,
        )

    def draw(self, spec: ImageSpec, images: int) -> RgbImage:
        self.small.rows = 99
        lanes = lanes_for(images, strict=True)
        profile = self.device.numeric_profile(
            Stage.BASE, lanes, self.checkpoint.name, self.placement.applied
        )
        model = StageModel(
            profile=profile, memory_plan=MemoryPlan(images), device=self.device, parts=self.parts
        )
        engine = Engine(ModelCache.of(model), snapshot_every=9)
        return walk({Stage.BASE: engine}, [(spec, None)])[0]


def built(checkpoint: Checkpoint, device: Device, *, rows: int, rungs: int = 99) -> Built:
    modules = load(checkpoint, device)
    placement = Placement(modules, device)
    unet = UNetDenoiser(modules.unet, checkpoint.noise_config.prediction_type, device.dtype)
    small = Small(unet, placement, rows, rungs)
    parts = Parts(
        Conditioner(modules.text_encoders, checkpoint),
        small,
        SdxlVae(modules.vae, device.torch_device),
    )
    return Built(checkpoint, device, placement, small, parts)


@dataclass(frozen=True, slots=True)
class Counting(Device):
    """A device that counts: so many bytes of a hundred, or of `all`, at each try, in order."""

    peaks: list[int] = field(default_factory=list)
    all: int = 100

    def use(self) -> MemoryUsage:
        return MemoryUsage(self.peaks.pop(0), self.all)


UNET, VAE, TEXT = 51, 2, 16  # in bytes of the card below


@dataclass(frozen=True, slots=True)
class Card(Device):
    """A card of so many bytes, which counts those that `Moved` puts on it."""

    size: int = 0
    count: dict[str, int] = field(default_factory=lambda: {"now": 0, "peak": 0})

    def put(self, bytes: int) -> None:
        self.count["now"] = min(bytes, self.size)  # modules move one by one, until it is full
        self.count["peak"] = max(self.count["peak"], self.count["now"])
        if bytes > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def free(self) -> None:
        self.count["peak"] = self.count["now"]

    def use(self) -> MemoryUsage:
        return MemoryUsage(self.count["peak"], self.size)


class Moved(Placement):
    """Modules of stated sizes on such a card."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self.applied = ()

    def take(self, rungs: tuple[MemorySaving, ...]) -> None:
        self.applied = rungs
        text = 0 if MemorySaving.TEXT_ON_CPU in rungs else TEXT
        unet = 0 if MemorySaving.UNET_ON_CPU in rungs else UNET
        self._card.put(VAE + text + unet)

    @property
    def held(self) -> int:
        return self._card.count["now"]


@pytest.fixture
def base(checkpoints: dict[Stage, Checkpoint]) -> Checkpoint:
    return checkpoints[Stage.BASE]


@pytest.mark.parametrize(
    ("rows", "strict", "images"), [(8, True, 4), (7, True, 2), (3, True, 1), (5, False, 2)]
)
def test_as_many_images_step_together_as_the_device_has_rows_for(
    base: Checkpoint, cpu: Device, rows: int, strict: bool, images: int
) -> None:
    there = built(base, cpu, rows=rows)
    assert find_memory_plan(4, ALL, there.trial(strict=strict)) == MemoryPlan(images)
    assert there.placement.applied == ()


def test_what_is_tried_is_the_largest_picture_that_may_be_asked_for(
    base: Checkpoint, cpu: Device
) -> None:
    there = built(base, cpu, rows=8)
    find_memory_plan(3, ALL, there.trial())
    assert there.small.seen == [(8, 1, 4, 144 // 8, 256 // 8)]


@pytest.mark.parametrize("rungs", [1, 2, 3, 4])
def test_one_image_that_has_no_room_takes_rung_after_rung(
    base: Checkpoint, cpu: Device, rungs: int, caplog: pytest.LogCaptureFixture
) -> None:
    there = built(base, cpu, rows=0, rungs=rungs)
    with caplog.at_level(logging.WARNING):
        assert find_memory_plan(2, ALL, there.trial()) == MemoryPlan(1, ALL[:rungs])
    assert there.placement.applied == ALL[:rungs]
    said = ", ".join(ALL[:rungs])
    assert caplog.messages == [
        f"too little memory for 2 images at a time: now 1 image at a time, {said}"
    ]


def test_what_holds_must_leave_a_twentieth_to_spare(base: Checkpoint) -> None:
    counting = Counting(
        torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1, 1.0, [100, 96, 95]
    )
    assert find_memory_plan(8, ALL, built(base, counting, rows=99).trial()) == MemoryPlan(2)
    assert counting.peaks == []


@pytest.mark.parametrize(("to_come", "images"), [(0, 4), (1, 4), (2, 2)])
def test_room_is_left_for_models_that_are_to_come(
    base: Checkpoint, cpu: Device, to_come: int, images: int
) -> None:
    """Three times the weights have room, and work of 500 bytes, as two images take it."""
    weights = built(base, cpu, rows=99).placement.bytes_on_device
    assert weights == 4 * sum(num_parameters(base).values())
    counting = Counting(
        *(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1),
        peaks=[weights + work for work in (900, 500, 100)],
        all=int((3 * weights + 500) / 0.95) + 1,
    )
    there = built(base, counting, rows=99)
    assert find_memory_plan(4, (), there.trial(to_come=to_come)) == MemoryPlan(images)


@pytest.mark.parametrize(("to_come", "loras", "images"), [(0, 400, 4), (0, 401, 2), (1, 401, 2)])
def test_room_is_left_for_loras_and_their_work_and_for_those_of_models_to_come(
    base: Checkpoint, cpu: Device, to_come: int, loras: int, images: int
) -> None:
    work = 20 * 8 * 256 * 144 * 4  # numbers in eight rows of the largest picture, in bytes
    weights = built(base, cpu, rows=99).placement.bytes_on_device
    counting = Counting(
        *(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1),
        peaks=[weights + work for work in (900, 500, 100)],
        all=int(((1 + to_come) * weights + 1300 + work) / 0.95) + 1,
    )
    there = built(base, counting, rows=99)
    assert find_memory_plan(4, (), there.trial(to_come=to_come, loras=loras)) == MemoryPlan(images)


@pytest.mark.parametrize(("size", "rungs"), [(80, 0), (60, 2), (50, 3)])
def test_what_has_left_the_card_counts_no_more(
    base: Checkpoint, cpu: Device, size: int, rungs: int
) -> None:
    card = Card(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1, size=size)
    parts, ladder = built(base, cpu, rows=99).parts, SAVINGS_BY_DEVICE["cuda"]
    trial = MemoryProbe(
        parts, Moved(card), card, native_size=base.native_size, strict=True, reserve_for=0
    )
    assert find_memory_plan(1, ladder, trial) == MemoryPlan(1, ladder[:rungs])


def test_a_device_on_which_nothing_holds_says_what_to_do(base: Checkpoint, cpu: Device) -> None:
    with pytest.raises(DeviceFull, match=r"no room for one image.*nvidia-smi.*MODEL_PRECISION"):
        find_memory_plan(2, ALL, built(base, cpu, rows=0).trial())


def test_a_failure_that_is_no_lack_of_room_is_not_taken_for_one(
    base: Checkpoint, cpu: Device
) -> None:
    there = built(base, cpu, rows=8)

    class Broken(MeanPixels):
        def decode(self, latents: torch.Tensor) -> RgbImage:
            raise RuntimeError("expected all tensors to be on the same device")

    there.parts = Parts(there.parts.conditioner, there.small, Broken())
    with pytest.raises(RuntimeError, match="same device"):
        find_memory_plan(2, ALL, there.trial())


def test_layers_and_encoders_that_only_visit_the_device_change_no_byte(
    base: Checkpoint, cpu: Device
) -> None:
    plain, visiting = built(base, cpu, rows=8), built(base, cpu, rows=8)
    plain.placement.apply(())
    visiting.placement.apply((MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU))
    assert np.array_equal(plain.draw(WIDE, 1), visiting.draw(WIDE, 1))


def test_sliced_attention_changes_no_more_than_rounding_does(base: Checkpoint, cpu: Device) -> None:
    plain, sliced = built(base, cpu, rows=8), built(base, cpu, rows=8)
    plain.placement.apply(())
    sliced.placement.apply((MemorySaving.SLICED_ATTENTION,))
    apart = plain.draw(WIDE, 1).astype(int) - sliced.draw(WIDE, 1)
    assert abs(apart).max() <= 2


def test_tiles_are_seen_in_large_pictures_alone(base: Checkpoint, cpu: Device) -> None:
    plain, tiled = built(base, cpu, rows=8), built(base, cpu, rows=8)
    plain.placement.apply(())
    tiled.placement.apply((MemorySaving.VAE_TILES,))
    small = ImageSpec(prompt="a star", seed=4, width=128, height=128, steps=2, guidance=1)
    assert np.array_equal(plain.draw(small, 1), tiled.draw(small, 1))
    one, other = plain.draw(WIDE, 1), tiled.draw(WIDE, 1)
    assert not np.array_equal(one, other)
    assert abs(one.astype(int) - other).mean() < 3  # of 255


def test_what_was_given_up_is_in_the_numeric_profile(cpu: Device) -> None:
    plain = cpu.numeric_profile(Stage.BASE, 2, "sdxl")
    assert plain.name != cpu.numeric_profile(Stage.BASE, 2, "sdxl", (MemorySaving.VAE_TILES,)).name


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.99 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_room_is_known_by_type_or_by_word(error: Exception, lack: bool) -> None:
    assert is_out_of_memory(error) is lack


def test_a_real_allocation_that_fails_is_known_as_lack_of_room() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_card_never_slices_its_attention_and_a_cpu_is_never_fitted() -> None:
    assert MemorySaving.SLICED_ATTENTION not in SAVINGS_BY_DEVICE["cuda"]
    assert "cpu" not in SAVINGS_BY_DEVICE
