"""Models that leave the device for the host and come back: the same bytes, the same objects, never
more on the card than there is room for."""

import gc
import logging
import weakref
from collections.abc import Sequence
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
from tests.support.engine_runs import drain, sample_of, walk
from tests.support.extension_files import lora_files
from tests.support.keys import REFINER, base_key, lora, lora_key
from tests.support.lora_files import lora_file
from tests.support.simulated_card import SimulatedCard

DEMO = base_key("demo")
SPEC = ImageSpec(
    prompt="a red circle", seed=3, width=128, height=128, steps=4, guidance=5, handoff=0.6
)
CROWD = [
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
    """Makers of analytic models that note what they make."""

    def make(key: ModelKey, to_come: int, before: MemoryPlan | None) -> StageModel:
        made.append(str(key))
        return analytic_model(ConstantDenoiser(shades[key]), model=str(key), stage=key.stage)

    return {key: partial(make, key) for key in shades}


def journeys(engine: Engine, specs: Sequence[ImageSpec]) -> list[bytes]:
    """The pictures of images that come at once and go on to the refiner as soon as they can, each
    for itself, on one engine that runs both."""
    pictures: dict[str, bytes] = {}

    def go(sample: HostSample, leg: StageSegment, *ahead: StageSegment) -> None:
        def listen(event: Event) -> None:
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished) and event.image is not None:
                pictures[sample.id] = event.image.tobytes()
            elif isinstance(event, Finished):
                go(event.sample, *ahead)

        engine.submit(for_stage(sample, leg.stage), leg, listen)

    for number, spec in enumerate(specs):
        sample = sample_of(spec, str(number), refiner=True)
        go(sample, *stage_segments(sample.schedule, spec.handoff, refiner=True))
    drain(engine)
    return [pictures[str(number)] for number in range(len(specs))]


@pytest.fixture(scope="module")
def apart(models: dict[str, dict[Stage, StageModel]]) -> list[bytes]:
    """The crowd's pictures, made by two engines with a model each."""
    two = {s: Engine(ModelCache.of(item), snapshot_every=9) for s, item in models["strict"].items()}
    return [picture.tobytes() for picture in walk(two, [(spec, None) for spec in CROWD])]


@pytest.mark.parametrize("room", [1, 2])
def test_base_and_refiner_on_one_engine_paint_what_they_paint_on_two(
    models: dict[str, dict[Stage, StageModel]], apart: list[bytes], room: int
) -> None:
    strict = models["strict"]
    makers: dict[ModelKey, Loader] = {
        DEMO: lambda to_come, before: strict[Stage.BASE],
        REFINER: lambda to_come, before: strict[Stage.REFINER],
    }
    together = Engine(
        ModelCache(makers, capacity=room, offload_capacity=1, pinned=[REFINER]), snapshot_every=1
    )
    assert journeys(together, CROWD) == apart
    assert len(set(apart)) == len(CROWD)
    assert len(together.models.batch_sizes) == room


def test_base_and_refiner_larger_together_than_the_card_paint_the_same_bytes(
    checkpoints: dict[Stage, Checkpoint], apart: list[bytes], card: SimulatedCard
) -> None:
    """From the first swap on the card has room for the larger one alone, to the byte."""
    sizes = []

    def make(stage: Stage, to_come: int, before: MemoryPlan | None) -> StageModel:
        assert card.bytes["now"] == 0, "one is made before the last has left"
        model = build_stage_model(checkpoints[stage], card, images=4, strict=True)
        model.offload()  # what was loaded is not counted: what is fetched is
        model.restore()
        sizes.append(card.bytes["now"])
        return model

    makers: dict[ModelKey, Loader] = {
        DEMO: partial(make, Stage.BASE),
        REFINER: partial(make, Stage.REFINER),
    }
    shelf = ModelCache(makers, offload_capacity=1, pinned=[REFINER])
    card.bytes["room"] = max(sizes)
    engine = Engine(shelf, snapshot_every=1)
    for _ in range(2):
        assert tuple(shelf.batch_sizes) in ((DEMO,), (REFINER,))
        assert journeys(engine, CROWD[:2]) == apart[:2]
    assert card.bytes["peak"] == max(sizes)
    assert (tuple(shelf.batch_sizes), card.bytes["now"]) == ((REFINER,), sizes[1])
    assert len(sizes) == 2


def test_a_hundred_swaps_make_each_model_once_and_serve_whoever_comes() -> None:
    made: list[str] = []
    shelf = ModelCache(
        named({DEMO: 0.75, REFINER: 0.25}, made), offload_capacity=1, pinned=[REFINER]
    )
    engine = Engine(shelf, snapshot_every=9)
    assert made == ["demo", "refiner"]
    assert tuple(shelf.batch_sizes) == (DEMO,)
    profiles = set()
    for number in range(50):
        spec = replace(SPEC, width=64, height=64, seed=number, steps=2)
        journeys(engine, [spec])
        profiles.add((shelf.profile, tuple(shelf.memory_plans)))
        assert tuple(shelf.batch_sizes) == (REFINER,)
    assert made == ["demo", "refiner"]
    assert len(profiles) == 1


@pytest.mark.parametrize(
    ("parked", "always", "loads", "made"),
    [
        (0, [], "bab", "abab"),  # each comes from disk again, as ever
        (1, [], "bcbca", "abca"),  # the one parked longest went for good
        (1, ["r"], "brbcrar", "arbca"),  # bases come from disk, the refiner never does
        (2, ["r"], "bcbrar", "arbca"),
    ],
)
def test_so_many_stay_on_the_host_and_some_always(
    parked: int, always: list[str], loads: str, made: str
) -> None:
    seen: list[str] = []
    makers = named(dict.fromkeys(map(base_key, "abcr"), 0.5), seen)
    shelf = ModelCache(makers, offload_capacity=parked, pinned=list(map(base_key, always)))
    for key in map(base_key, loads):
        (resident,) = shelf.batch_sizes
        if key != resident:
            shelf.load(key, [resident])
        assert tuple(shelf.batch_sizes) == (key,)
        assert len(shelf.memory_plans) <= 1 + parked
    assert "".join(seen) == made


def test_a_refiner_that_can_not_be_loaded_is_reported_at_the_start_by_its_own_error() -> None:
    def broken(to_come: int, before: MemoryPlan | None) -> StageModel:
        raise DeviceFull("the device has no room for one image")

    makers = named({DEMO: 0.5}, []) | {REFINER: broken}
    with pytest.raises(DeviceFull, match="no room for one image"):
        ModelCache(makers, offload_capacity=1, pinned=[REFINER])


@dataclass(slots=True)
class Stuck:
    """Networks that can't come back while the device is full."""

    full: bool = False
    resident_item: bool = True

    def offload(self) -> None:
        self.resident_item = False

    def restore(self) -> None:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.resident_item = True


def test_a_model_that_finds_no_room_to_come_back_stays_parked_and_comes_later() -> None:
    now, stuck, made = [0.0], Stuck(), list[str]()

    def refiner(to_come: int, before: MemoryPlan | None) -> StageModel:
        made.append("refiner")
        return analytic_model(ConstantDenoiser(), stage=Stage.REFINER, parking=stuck)

    makers = named({DEMO: 0.5}, made) | {REFINER: refiner}
    shelf = ModelCache(makers, offload_capacity=1, pinned=[REFINER], clock=lambda: now[0])
    stuck.full = True
    with pytest.raises(
        ModelUnavailable, match=r"no room for the model refiner\. .* MAX_LOADED_MODELS"
    ):
        shelf.load(REFINER, [DEMO])
    assert shelf.batch_sizes == {}
    assert set(shelf.memory_plans) == {DEMO, REFINER}
    with pytest.raises(ModelUnavailable, match="no room for the model refiner"):
        shelf.admit(sample_of(replace(SPEC, handoff=0.0), refiner=True))
    shelf.load(DEMO, [])
    stuck.full, now[0] = False, 60.0
    engine, (picture,) = Engine(shelf, snapshot_every=9), [replace(SPEC, width=64, height=64)]
    assert journeys(engine, [picture])
    assert stuck.resident_item
    assert made == ["demo", "refiner"]


def test_networks_that_find_no_room_to_come_back_leave_nothing_on_the_card(
    checkpoints: dict[Stage, Checkpoint], card: SimulatedCard
) -> None:
    placement, _ = placed(checkpoints[Stage.BASE], card)
    placement.offload()
    card.bytes["room"] = 1 << 20
    with pytest.raises(torch.OutOfMemoryError):
        placement.restore()
    assert card.bytes["now"] == 0
    assert card.bytes["peak"] > 1 << 19
    card.bytes["room"] = 1 << 30
    placement.restore()
    assert card.bytes["now"] > 1 << 20


def placed(checkpoint: Checkpoint, device: Device) -> tuple[Placement, Modules]:
    modules = load(checkpoint, device)
    placement = Placement(modules, device)
    placement.apply(())
    return placement, modules


def test_what_visits_the_card_still_visits_it_when_the_rest_has_come_back(
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
            assert card.bytes["now"] == sum(item.nbytes for item in vae)
        prediction = checkpoint.noise_config.prediction_type
        parts = Parts(
            Conditioner(modules.text_encoders, checkpoint),
            UNetDenoiser(modules.unet, prediction, device.dtype),
            SdxlVae(modules.vae, device.torch_device),
        )
        profile = device.numeric_profile(Stage.BASE, 2, checkpoint.name, rungs)
        model = StageModel(profile=profile, memory_plan=MemoryPlan(1), device=device, parts=parts)
        engine = Engine(ModelCache.of(model), snapshot_every=9)
        pictures += walk({Stage.BASE: engine}, [(replace(SPEC, steps=2, handoff=1.0), None)])
    assert np.array_equal(pictures[0], pictures[1])


def inside(*networks: torch.nn.Module) -> list[torch.Tensor]:
    return [item for network in networks for item in (*network.parameters(), *network.buffers())]


class Layer(torch.nn.Module):
    """Numbers of several kinds, and a memory of where they were sent."""

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


def test_every_number_comes_back_to_the_same_parameter_whatever_its_kind(
    card: SimulatedCard,
) -> None:
    layer = Layer()
    before = {name: item.clone() for name, item in layer.state_dict().items()}
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
    assert all(item is other for item, other in zip(parameters, layer.parameters(), strict=True))
    assert card.bytes["now"] == sum(t.nbytes for n, t in before.items() if n != "turned")


class Silent:
    """Prompts without networks."""

    networks = ()

    def keep_on_device(self, *, on_device: bool) -> None:
        """Nothing moves."""


def test_what_has_no_copy_is_sent_with_its_network() -> None:
    """As an adapter that is attached when the copies are there already; as all on a device whose
    memory is the host's."""
    for kind in (SimulatedCard, Device):
        device = kind(torch.device("cpu:0"), "cpu", torch.float32, torch.float32, "sdpa", 1)
        layer, modules = Layer(), Modules(Layer(), Layer(), Silent(), None)  # type: ignore[arg-type]
        placement = Placement(modules, device)
        placement.apply(())
        placement.offload()
        modules.unet.late = layer
        placement.restore()
        placement.offload()
        assert modules.unet.sent == modules.vae.sent == ["cpu:0", "cpu", "cpu:0", "cpu"]


def test_copies_are_packed_in_few_blocks(card: SimulatedCard) -> None:
    """torch rounds what it pins up to a power of two, so what is asked for is one, or the rest."""
    layers = [torch.nn.Linear(50, 50, bias=False) for _ in range(7)]  # 10,000 bytes each
    PinnedCopies(inside(*layers), card, block_bytes=1 << 15)
    assert card.blocks == [1 << 15, 1 << 15, 10_048]
    PinnedCopies(inside(layers[0]), card, block_bytes=1 << 10)
    assert card.blocks[3:] == [10_048]


def test_where_the_system_pins_no_more_the_rest_lies_in_usual_memory(
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


def test_a_failure_to_pin_that_is_no_lack_of_memory_is_not_taken_for_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine pins")
    device = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
    with pytest.raises(RuntimeError, match="pin"):
        PinnedCopies(inside(Layer()), device)


def test_a_cpu_keeps_no_second_copy_and_moves_nothing(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    placement, modules = placed(checkpoints[Stage.REFINER], cpu)
    before = [item.data_ptr() for item in modules.unet.parameters()]
    placement.offload()
    assert [item.data_ptr() for item in modules.unet.parameters()] == before
    placement.restore()
    assert [item.data_ptr() for item in modules.unet.parameters()] == before


def test_a_lora_goes_along_and_nothing_of_it_stays_when_it_is_detached(
    checkpoints: dict[Stage, Checkpoint], card: SimulatedCard, tmp_path: Path
) -> None:
    """Attached before the first copies are made, so that a copy could keep it."""
    file = inspect_lora(lora_file(demo_folder(Stage.BASE), tmp_path / "a.safetensors"))
    device = replace(card, cpu_threads=1)
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

    def painted(spec: ImageSpec) -> bytes:
        return walk({Stage.BASE: engine}, [(spec, None)])[0].tobytes()

    worn, bare = painted(spec), painted(replace(spec, extensions=()))
    model.offload()
    model.restore()
    assert painted(spec) == worn != bare
    assert model.attached_extensions == (lora_key("a"),)
    layers = (m for m in gc.get_objects() if issubclass(type(m), LoraLayer))
    parts = [weakref.ref(w) for layer in layers for w in layer.lora_A.parameters()]
    assert parts
    model.attach(lora_key("a"), [lora_key("a")])
    gc.collect()
    assert not any(part() is not None for part in parts)
    assert painted(spec) == worn
    assert painted(replace(spec, extensions=())) == bare
