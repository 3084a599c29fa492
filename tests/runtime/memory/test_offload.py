"""Models that are offloaded to the host and return: the same bytes and objects, within the memory
of the card."""

import gc
import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceFull, ModelUnavailable
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.memory.pinned_copies import PinnedCopies
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.stage_model import HostSample, Parts, StageModel
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.engine_runs import drain, run_images, sample_of
from tests.support.extension_files import lora_files
from tests.support.keys import REFINER, base_key, lora, lora_key
from tests.support.lora_files import lora_file
from tests.support.simulated_card import SimulatedCard

DEMO = base_key("demo")
SPEC = ImageSpec(
    prompt="a red circle", seed=3, width=128, height=128, steps=4, guidance=5, handoff=0.6
)
SPECS = [
    SPEC,
    replace(SPEC, seed=4, sampler=Sampler.EULER_A, negative_prompt="blur"),
    replace(SPEC, seed=5, steps=6, guidance=1.0),
    replace(SPEC, seed=6, handoff=0.0),  # the refiner alone
    replace(SPEC, seed=7, handoff=1.0),  # base alone
]


@pytest.fixture
def card() -> SimulatedCard:
    return SimulatedCard(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 2)


def named(shades: dict[ModelKey, float], made: list[str]) -> dict[ModelKey, Loader]:
    """Loaders of analytic models that record what they build."""

    def make(key: ModelKey, reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        made.append(str(key))
        return analytic_model(ConstantDenoiser(shades[key]), model=str(key), stage=key.stage)

    return {key: partial(make, key) for key in shades}


def generate_interleaved(engine: Engine, specs: Sequence[ImageSpec]) -> list[bytes]:
    """The bytes of images that are submitted together to one engine of both stages.

    Each goes on to the refiner as soon as its base segment ends.
    """
    pictures: dict[str, bytes] = {}

    def advance(sample: HostSample, segment: StageSegment, *later: StageSegment) -> None:
        def listen(event: Event) -> None:
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished) and event.image is not None:
                pictures[sample.id] = event.image.tobytes()
            elif isinstance(event, Finished):
                advance(event.sample, *later)

        engine.submit(for_stage(sample, segment.stage), segment, listen)

    for number, spec in enumerate(specs):
        sample = sample_of(spec, str(number), refiner=True)
        advance(sample, *stage_segments(sample.schedule, spec.handoff, refiner=True))
    drain(engine)
    return [pictures[str(number)] for number in range(len(specs))]


@pytest.fixture(scope="module")
def made_apart(models: dict[str, dict[Stage, StageModel]]) -> list[bytes]:
    """The images of SPECS, made by two engines with a model each."""
    two = {
        s: Engine(ModelCache.of(model), snapshot_every=9) for s, model in models["strict"].items()
    }
    return [picture.tobytes() for picture in run_images(two, [(spec, None) for spec in SPECS])]


@pytest.mark.parametrize("capacity", [1, 2])
def test_base_and_refiner_on_one_engine_make_the_same_images_as_on_two(
    models: dict[str, dict[Stage, StageModel]], made_apart: list[bytes], capacity: int
) -> None:
    strict = models["strict"]
    makers: dict[ModelKey, Loader] = {
        DEMO: lambda reserve_for, previous_plan: strict[Stage.BASE],
        REFINER: lambda reserve_for, previous_plan: strict[Stage.REFINER],
    }
    together = Engine(
        ModelCache(makers, capacity=capacity, offload_capacity=1, pinned=[REFINER]),
        snapshot_every=1,
    )
    assert generate_interleaved(together, SPECS) == made_apart
    assert len(set(made_apart)) == len(SPECS)
    assert len(together.models.batch_sizes) == capacity


def test_base_and_refiner_that_exceed_the_card_together_make_the_same_bytes(
    checkpoints: dict[Stage, Checkpoint], made_apart: list[bytes], card: SimulatedCard
) -> None:
    """From the first swap on, the card fits exactly the larger model alone."""
    sizes = []

    def make(stage: Stage, reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        assert card.bytes["now"] == 0, "a model is built before the last has left"
        model = build_stage_model(checkpoints[stage], card, images=4, strict=True)
        model.offload()  # only fetches are counted, not the load
        model.restore()
        sizes.append(card.bytes["now"])
        return model

    makers: dict[ModelKey, Loader] = {
        DEMO: partial(make, Stage.BASE),
        REFINER: partial(make, Stage.REFINER),
    }
    cache = ModelCache(makers, offload_capacity=1, pinned=[REFINER])
    card.bytes["capacity"] = max(sizes)
    engine = Engine(cache, snapshot_every=1)
    for _ in range(2):
        assert tuple(cache.batch_sizes) in ((DEMO,), (REFINER,))
        assert generate_interleaved(engine, SPECS[:2]) == made_apart[:2]
    assert card.bytes["peak"] == max(sizes)
    assert (tuple(cache.batch_sizes), card.bytes["now"]) == ((REFINER,), sizes[1])
    assert len(sizes) == 2


def test_a_hundred_swaps_build_each_model_once_and_serve_every_image() -> None:
    made: list[str] = []
    cache = ModelCache(
        named({DEMO: 0.75, REFINER: 0.25}, made), offload_capacity=1, pinned=[REFINER]
    )
    engine = Engine(cache, snapshot_every=9)
    assert made == ["demo", "refiner"]
    assert tuple(cache.batch_sizes) == (DEMO,)
    profiles = set()
    for number in range(50):
        spec = replace(SPEC, width=64, height=64, seed=number, steps=2)
        generate_interleaved(engine, [spec])
        profiles.add((cache.profile, tuple(cache.memory_plans)))
        assert tuple(cache.batch_sizes) == (REFINER,)
    assert made == ["demo", "refiner"]
    assert len(profiles) == 1


@pytest.mark.parametrize(
    ("offload_capacity", "pinned", "loads", "made"),
    [
        (0, [], "bab", "abab"),  # each is loaded from disk again
        (1, [], "bcbca", "abca"),  # the one offloaded longest was evicted
        (1, ["r"], "brbcrar", "arbca"),  # bases are loaded again, the refiner never is
        (2, ["r"], "bcbrar", "arbca"),
    ],
)
def test_the_offload_capacity_is_kept_and_pinned_models_always_stay(
    offload_capacity: int, pinned: list[str], loads: str, made: str
) -> None:
    seen: list[str] = []
    makers = named(dict.fromkeys(map(base_key, "abcr"), 0.5), seen)
    cache = ModelCache(
        makers, offload_capacity=offload_capacity, pinned=list(map(base_key, pinned))
    )
    for key in map(base_key, loads):
        (resident,) = cache.batch_sizes
        if key != resident:
            cache.load(key, [resident])
        assert tuple(cache.batch_sizes) == (key,)
        assert len(cache.memory_plans) <= 1 + offload_capacity
    assert "".join(seen) == made


def test_a_refiner_that_fails_to_load_raises_its_own_error_at_the_start() -> None:
    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise DeviceFull("the device has no room for one image")

    makers = named({DEMO: 0.5}, []) | {REFINER: broken}
    with pytest.raises(DeviceFull, match="no room for one image"):
        ModelCache(makers, offload_capacity=1, pinned=[REFINER])


@dataclass(slots=True)
class Stuck:
    """Networks that can't be restored while the device is full."""

    full: bool = False
    resident_item: bool = True

    def offload(self) -> None:
        self.resident_item = False

    def restore(self) -> None:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.resident_item = True


def test_a_model_that_does_not_fit_back_stays_offloaded_and_returns_later() -> None:
    now, stuck, made = [0.0], Stuck(), list[str]()

    def refiner(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        made.append("refiner")
        return analytic_model(ConstantDenoiser(), stage=Stage.REFINER, parking=stuck)

    makers = named({DEMO: 0.5}, made) | {REFINER: refiner}
    cache = ModelCache(makers, offload_capacity=1, pinned=[REFINER], clock=lambda: now[0])
    stuck.full = True
    with pytest.raises(
        ModelUnavailable, match=r"no room for the model refiner\. .* MAX_LOADED_MODELS"
    ):
        cache.load(REFINER, [DEMO])
    assert cache.batch_sizes == {}
    assert set(cache.memory_plans) == {DEMO, REFINER}
    with pytest.raises(ModelUnavailable, match="no room for the model refiner"):
        cache.admit(sample_of(replace(SPEC, handoff=0.0), refiner=True))
    cache.load(DEMO, [])
    stuck.full, now[0] = False, 60.0
    engine, (picture,) = Engine(cache, snapshot_every=9), [replace(SPEC, width=64, height=64)]
    assert generate_interleaved(engine, [picture])
    assert stuck.resident_item
    assert made == ["demo", "refiner"]


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
