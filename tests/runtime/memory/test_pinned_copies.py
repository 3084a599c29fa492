"""Networks that leave the card and return: the same values and objects, and nothing is left."""

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.memory.pinned_copies import PinnedCopies
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.parts import Parts
from serve_app.runtime.stage_model import StageModel
from tests.support.engine_runs import run_images
from tests.support.extension_files import lora_files
from tests.support.keys import lora, lora_key
from tests.support.lora_files import lora_file
from tests.support.simulated_card import SimulatedCard

SPEC = ImageSpec(
    prompt="a red circle", seed=3, width=128, height=128, steps=4, guidance=5, handoff=0.6
)


def test_networks_that_do_not_fit_back_leave_nothing_on_the_card(
    checkpoints: dict[Stage, Checkpoint], card: SimulatedCard
) -> None:
    placement, _ = placed(checkpoints[Stage.BASE], card)
    placement.offload()
    card.bytes["capacity"] = 1 << 20
    with pytest.raises(torch.OutOfMemoryError):
        placement.restore()
    assert card.bytes["now"] == 0
    assert card.bytes["peak"] > 1 << 19
    card.bytes["capacity"] = 1 << 30
    placement.restore()
    assert card.bytes["now"] > 1 << 20


def placed(checkpoint: Checkpoint, device: Device) -> tuple[Placement, Modules]:
    modules = load(checkpoint, device)
    placement = Placement(modules, device)
    placement.apply(())
    return placement, modules


def test_layers_that_were_streamed_to_the_card_still_are_when_the_model_has_returned(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, card: SimulatedCard
) -> None:
    pictures, rungs = (
        [],
        (MemorySaving.VAE_TILES, MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU),
    )
    for device in (cpu, card):
        checkpoint = checkpoints[Stage.BASE]
        placement, modules = placed(checkpoint, device)
        placement.apply(rungs)
        if device is card:
            placement.offload()
            placement.restore()
            vae = (*modules.vae.parameters(), *modules.vae.buffers())
            assert card.bytes["now"] == sum(tensor.nbytes for tensor in vae)
        preconditioning = checkpoint.noise_config.preconditioning
        parts = Parts(
            Conditioner(modules.text_encoders, checkpoint),
            UNetDenoiser(modules.unet, preconditioning, device.dtype),
            SdxlVae(modules.vae, device.torch_device),
        )
        profile = device.numeric_profile(Stage.BASE, 2, checkpoint.name, rungs)
        model = StageModel(profile=profile, memory_plan=MemoryPlan(1), device=device, parts=parts)
        engine = Engine(ModelCache.of(model), snapshot_every=9)
        pictures += run_images({Stage.BASE: engine}, [(replace(SPEC, steps=2, handoff=1.0), None)])
    assert np.array_equal(pictures[0], pictures[1])


def inside(*networks: torch.nn.Module) -> list[torch.Tensor]:
    return [
        tensor for network in networks for tensor in (*network.parameters(), *network.buffers())
    ]


class Layer(torch.nn.Module):
    """Tensors of several dtypes, and a record of the devices they were moved to."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        shapes = ((7, 5), (), (3, 1, 2), (64,))
        self.halves = torch.nn.ParameterList(torch.randn(s, generator=draw).half() for s in shapes)
        self.whole = torch.nn.Parameter(torch.randn(11, 3, generator=draw))
        self.turned = torch.nn.Parameter(torch.randn(4, 6, generator=draw).T)
        self.register_buffer("ids", torch.arange(77).expand(1, -1))
        self.sent: list[str] = []

    def to(self, device: Any) -> "Layer":  # type: ignore[override]
        self.sent.append(str(device))
        return super().to(device)


def test_every_value_returns_to_the_same_parameter_in_every_dtype(
    card: SimulatedCard,
) -> None:
    layer = Layer()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    parameters = list(layer.parameters())
    copies = PinnedCopies(inside(layer), card)
    for _ in range(3):
        copies.offload()
        assert card.bytes["now"] == 0
        copies.restore()
        for name, after in layer.state_dict().items():
            assert torch.equal(after, before[name])
            assert after.dtype == before[name].dtype
        del after
    assert all(value is other for value, other in zip(parameters, layer.parameters(), strict=True))
    assert card.bytes["now"] == sum(t.nbytes for n, t in before.items() if n != "turned")


class Silent:
    """Text encoders without networks."""

    networks = ()

    def keep_on_device(self, *, on_device: bool) -> None:
        """Nothing moves."""


def test_a_tensor_without_a_host_copy_moves_with_its_network() -> None:
    """As an adapter that is attached when the copies are there already; as all on a device whose
    memory is the host's."""
    for kind in (SimulatedCard, Device):
        device = kind(torch.device("cpu:0"), "cpu", torch.float32, torch.float32, "sdpa", 1)
        layer, modules = Layer(), Modules(Layer(), Layer(), Silent())  # type: ignore[arg-type]
        placement = Placement(modules, device)
        placement.apply(())
        placement.offload()
        modules.unet.late = layer
        placement.restore()
        placement.offload()
        assert modules.unet.sent == modules.vae.sent == ["cpu:0", "cpu", "cpu:0", "cpu"]


def test_a_network_beside_the_unet_leaves_the_card_and_returns_with_it(
    checkpoints: dict[Stage, Checkpoint], card: SimulatedCard
) -> None:
    """As one that an extension attaches; only the model's own networks have host copies."""
    placement, modules = placed(checkpoints[Stage.BASE], card)
    layer, alone = Layer(), placement.bytes_on_device
    modules.beside.append(layer)
    assert placement.bytes_on_device == alone + sum(p.nbytes for p in layer.parameters())
    placement.offload()
    placement.restore()
    assert layer.sent == ["cpu", str(card.torch_device)]
    modules.beside.remove(layer)
    placement.offload()
    placement.restore()
    assert len(layer.sent) == 2


def test_copies_are_packed_in_few_blocks(card: SimulatedCard) -> None:
    """torch rounds pinned blocks up to a power of two, so each block is one, or the rest."""
    layers = [torch.nn.Linear(50, 50, bias=False) for _ in range(7)]  # 10,000 bytes each
    PinnedCopies(inside(*layers), card, block_bytes=1 << 15)
    assert card.blocks == [1 << 15, 1 << 15, 10_048]
    PinnedCopies(inside(layers[0]), card, block_bytes=1 << 10)
    assert card.blocks[3:] == [10_048]


def test_when_the_system_pins_no_more_the_rest_is_in_pageable_memory(
    card: SimulatedCard, caplog: pytest.LogCaptureFixture
) -> None:
    card.bytes["pinnable"] = 1 << 15
    layers = [torch.nn.Linear(50, 50, bias=False) for _ in range(9)]
    before = [layer.weight.clone() for layer in layers]
    with caplog.at_level(logging.WARNING):
        copies = PinnedCopies(inside(*layers), card, block_bytes=1 << 15)
    (logged,) = caplog.messages
    assert logged.startswith("the system pins no more memory")
    copies.offload()
    copies.restore()
    assert all(torch.equal(a, b.weight) for a, b in zip(before, layers, strict=True))


def test_an_error_while_pinning_other_than_out_of_memory_is_raised() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine pins")
    device = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
    with pytest.raises(RuntimeError, match="pin"):
        PinnedCopies(inside(Layer()), device)


def test_a_cpu_keeps_no_second_copy_and_moves_nothing(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    placement, modules = placed(checkpoints[Stage.REFINER], cpu)
    before = [parameter.data_ptr() for parameter in modules.unet.parameters()]
    placement.offload()
    assert [parameter.data_ptr() for parameter in modules.unet.parameters()] == before
    placement.restore()
    assert [parameter.data_ptr() for parameter in modules.unet.parameters()] == before


def lora_layers() -> Iterator[LoraLayer]:
    """Return every LoRA layer that is in memory."""
    return (thing for thing in gc.get_objects() if issubclass(type(thing), LoraLayer))


@pytest.mark.long
def test_a_lora_is_offloaded_with_its_model_and_freed_when_detached(
    checkpoints: dict[Stage, Checkpoint], card: SimulatedCard, tmp_path: Path
) -> None:
    """Attached before the first copies are made, so that a copy could keep it."""
    file = inspect_lora(lora_file(demo_folder(Stage.BASE), tmp_path / "a.safetensors"))
    device = replace(card, cpu_threads=1)
    others = weakref.WeakSet(lora_layers())  # of other tests, which may still be in memory
    make = partial(
        build_stage_model,
        checkpoints[Stage.BASE],
        device,
        images=1,
        extensions=lora_files({"a": file}),
    )
    model = make(0, None, strict=True)
    engine = Engine(ModelCache.of(model), snapshot_every=9)
    spec = replace(SPEC, handoff=1.0, steps=2, extensions=(lora("a"),))

    def generate(spec: ImageSpec) -> bytes:
        return run_images({Stage.BASE: engine}, [(spec, None)])[0].tobytes()

    with_lora, bare = generate(spec), generate(replace(spec, extensions=()))
    model.offload()
    model.restore()
    assert generate(spec) == with_lora != bare
    assert model.attached_extensions == (lora_key("a"),)
    layers = [layer for layer in lora_layers() if layer not in others]
    parts = [weakref.ref(w) for layer in layers for w in layer.lora_A.parameters()]
    del layers
    assert parts
    model.attach(lora_key("a"), [lora_key("a")])
    gc.collect()
    assert not any(part() is not None for part in parts)
    assert generate(spec) == with_lora
    assert generate(replace(spec, extensions=())) == bare
