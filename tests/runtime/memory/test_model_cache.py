"""Several checkpoints on one replica: each picture is its own model's, to the byte, and what is
dropped leaves nothing behind."""

import gc
import traceback
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceFull, ModelNotFound, ModelUnavailable, ProfileChanged
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.checkpoints import perturbed
from tests.support.demo_models import IMAGES
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.keys import base_key, by_base_key, lora_key

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=5, guidance=5)
ROUNDS = 100


@pytest.fixture(scope="module")
def both(
    checkpoints: dict[Stage, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Checkpoint]:
    """The demo, and the demo with other weights."""
    folder = perturbed(demo_folder(Stage.BASE), tmp_path_factory.mktemp("models") / "tune")
    return {"demo": checkpoints[Stage.BASE], "tune": inspect(folder, Stage.BASE)}


Makers = dict[ModelKey, Loader]


def maker(denoiser: ConstantDenoiser, **options: Any) -> Loader:
    """Makes an analytic model, whatever is to come beside it."""
    return lambda to_come, before: analytic_model(denoiser, **options)


def makers(both: dict[str, Checkpoint], cpu: Device, images: int = IMAGES) -> Makers:
    return {
        base_key(name): partial(build_stage_model, item, cpu, images=images, strict=True)
        for name, item in both.items()
    }


def painted(engine: Engine, *specs: ImageSpec) -> list[bytes]:
    heard = [Heard() for _ in specs]
    for number, (spec, listener) in enumerate(zip(specs, heard, strict=True)):
        sample = sample_of(spec, f"image {number}")
        engine.submit(sample, whole(sample), listener)
    drain(engine)
    return [listener.picture.tobytes() for listener in heard]


def crowd() -> list[ImageSpec]:
    """Both models at once, with all that may differ beside them."""
    return [
        replace(SPEC, model="demo"),
        replace(SPEC, model="tune"),
        replace(SPEC, model="tune", seed=8, guidance=1.0, sampler=Sampler.EULER_A),
        replace(SPEC, model="demo", seed=9, steps=9, negative_prompt="blur"),
        replace(SPEC, model="tune", seed=7, steps=3),
    ]


@pytest.mark.parametrize("room", [1, 2])
def test_two_models_requested_for_at_once_paint_what_each_paints_alone(
    both: dict[str, Checkpoint], cpu: Device, room: int
) -> None:
    alone = []
    for spec in crowd():
        item = {name: model for name, model in both.items() if name == spec.model}
        alone += painted(Engine(ModelCache(makers(item, cpu)), snapshot_every=1), spec)
    together = Engine(ModelCache(makers(both, cpu), capacity=room), snapshot_every=1)
    assert painted(together, *crowd()) == alone
    assert len(set(alone)) == len(alone)
    assert len(together.models.batch_sizes) == room


def test_batches_never_mix_models() -> None:
    """Each model has its own shade, so that a row in the wrong batch would show."""
    shades = {"light": 0.75, "dark": 0.25}
    denoisers = {name: ConstantDenoiser(shade) for name, shade in shades.items()}
    shelf = ModelCache(
        {base_key(name): maker(d, model=name) for name, d in denoisers.items()}, capacity=2
    )
    engine = Engine(shelf, snapshot_every=5)
    heard = [Heard() for _ in range(6)]
    for number, listener in enumerate(heard):
        name = ("light", "dark")[number % 2]
        sample = sample_of(replace(SPEC, width=64, height=64, model=name), str(number))
        engine.submit(sample, whole(sample), listener)
    drain(engine)
    for number, listener in enumerate(heard):
        shade = shades[("light", "dark")[number % 2]]
        assert listener.finished.sample.latents == pytest.approx(shade, abs=1e-6)
    assert [d.batches for d in denoisers.values()] == [[(3, 8)] * 5] * 2


def test_each_model_keeps_to_its_own_fit_and_says_what_it_gave_up() -> None:
    """A larger model found room for one image only, beside one that steps four."""
    small, large = ConstantDenoiser(0.75), ConstantDenoiser(0.25)
    shelf = ModelCache(
        {
            base_key("small"): maker(small, model="small"),
            base_key("large"): maker(large, model="large", lanes=2, images=1),
        },
        capacity=2,
    )
    engine = Engine(shelf, snapshot_every=5)
    assert engine.memory_plans == {base_key("small"): MemoryPlan(4)}
    heard = {name: [Heard() for _ in range(3)] for name in ("small", "large")}
    for name, listeners in heard.items():
        for number, listener in enumerate(listeners):
            sample = sample_of(replace(SPEC, width=64, height=64, model=name), f"{name} {number}")
            engine.submit(sample, whole(sample), listener)
    drain(engine)
    assert set(large.batches) == {(1, 2)}
    assert max(small.batches) == (3, 8)
    assert engine.memory_plans == by_base_key({"small": MemoryPlan(4), "large": MemoryPlan(1)})
    profiles = {name: {item.finished.sample.profile for item in heard[name]} for name in heard}
    assert profiles == {name: {shelf[base_key(name)].profile.name} for name in heard}


def test_a_model_that_comes_again_with_another_fit_does_not_continue_its_old_snapshots() -> None:
    fits = iter([(8, 4), (2, 1)])

    def refitted(to_come: int, before: MemoryPlan | None) -> StageModel:
        lanes, images = next(fits)
        return analytic_model(ConstantDenoiser(), model="one", lanes=lanes, images=images)

    shelf = ModelCache(by_base_key({"one": refitted, "two": maker(ConstantDenoiser())}))
    engine = Engine(shelf, snapshot_every=5)
    spec = replace(SPEC, width=64, height=64)
    ends: list[Any] = []
    for name, id in (("one", "first"), ("two", "between"), ("one", "again")):
        sample, heard = sample_of(replace(spec, model=name), id), Heard()
        if ends and name == "one":
            sample = replace(ends[0], id=id)
        engine.submit(sample, whole(sample), heard)
        drain(engine)
        ends.append(heard.finished.sample if id != "again" else heard.failed.error)
    assert isinstance(ends[-1], ProfileChanged)
    engine.check()


class Ring(ConstantDenoiser):
    """Refers to itself, as networks do: it is not gone when nobody else refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.me = self


@pytest.fixture
def no_sweeper() -> Iterator[None]:
    """Python looks for rings when it is asked to, and not by chance before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_sweeper")
def test_a_model_has_left_memory_when_the_next_one_is_made() -> None:
    seen: list[weakref.ref[Ring]] = []

    def watched(name: str, to_come: int, before: MemoryPlan | None) -> StageModel:
        assert not any(item() for item in seen), "one is made before the last has left"
        seen.append(weakref.ref(ring := Ring()))
        return analytic_model(ring, model=name)

    loaders: Makers = {base_key(name): partial(watched, name) for name in "ab"}
    engine = Engine(ModelCache(loaders), snapshot_every=5)
    for number in range(4):
        spec = replace(SPEC, width=64, height=64, model="ab"[number % 2])
        painted(engine, replace(spec, seed=number))
    assert len(seen) == 4


def test_a_model_that_comes_again_is_reported_how_it_was_fitted() -> None:
    heard: list[MemoryPlan | None] = []

    def listening(to_come: int, before: MemoryPlan | None) -> StageModel:
        heard.append(before)
        return analytic_model(ConstantDenoiser(), model="one", lanes=2, images=1)

    item, two = base_key("one"), base_key("two")
    shelf = ModelCache({item: listening, two: maker(ConstantDenoiser(), model="two")})
    shelf.load(two, [item])
    shelf.load(item, [two])
    assert heard == [None, MemoryPlan(1)]


def test_a_model_that_could_not_be_loaded_puts_no_other_out_for_a_minute() -> None:
    now, tries = [0.0], []

    def broken(to_come: int, before: MemoryPlan | None) -> StageModel:
        tries.append(now[0])
        raise OSError("no such file")

    shelf = ModelCache(
        by_base_key({"one": maker(ConstantDenoiser(), model="one"), "bad": broken}),
        clock=lambda: now[0],
    )
    sample = sample_of(replace(SPEC, model="bad"), "x")
    with pytest.raises(ModelUnavailable):
        shelf.load(base_key("bad"), [])
    for now[0] in (0.0, 59.0):
        with pytest.raises(ModelUnavailable, match="the model bad can't be loaded"):
            shelf.admit(sample)
    now[0] = 60.0
    assert shelf.admit(sample) == sample
    assert tries == [0.0]


@pytest.mark.parametrize(("room", "reported"), [(1, [0, 0, 0]), (2, [1, 0, 0]), (9, [2, 1, 0])])
def test_each_model_is_reported_how_many_are_to_come_beside_it(
    room: int, reported: list[int]
) -> None:
    heard: list[int] = []

    def listening(to_come: int, before: MemoryPlan | None) -> StageModel:
        heard.append(to_come)
        return analytic_model(ConstantDenoiser())

    loaders = by_base_key(dict.fromkeys("abc", listening))
    engine = Engine(ModelCache(loaders, capacity=room), snapshot_every=5)
    for name in "bc":
        painted(engine, replace(SPEC, width=64, height=64, model=name))
    assert heard == reported


def test_nothing_of_a_model_that_could_not_be_made_stays_though_its_failure_is_kept() -> None:
    made: list[weakref.ref[ConstantDenoiser]] = []

    def half_made(to_come: int, before: MemoryPlan | None) -> StageModel:
        part = ConstantDenoiser()
        made.append(weakref.ref(part))
        raise DeviceFull("the device has no room for one image")

    shelf = ModelCache(by_base_key({"first": maker(ConstantDenoiser()), "half": half_made}))
    with pytest.raises(ModelUnavailable, match="no room for the model half") as failed:
        shelf.load(base_key("half"), [base_key("first")])
    assert isinstance(failed.value.__cause__, DeviceFull)
    assert made[0]() is None
    assert shelf.batch_sizes == {}


def test_a_snapshot_of_one_model_is_nothing_to_another() -> None:
    denoiser = ConstantDenoiser()
    names = ("one", "two")
    shelf = ModelCache({base_key(n): maker(denoiser, model=n) for n in names}, capacity=2)
    engine, heard = Engine(shelf, snapshot_every=1), Heard()
    sample = sample_of(replace(SPEC, width=64, height=64, model="one"))
    engine.submit(sample, whole(sample), heard)
    drain(engine)
    left = heard.finished.sample
    assert left.profile == shelf[base_key("one")].profile.name
    other, again = Heard(), Heard()
    moved = replace(left, id="moved", spec=replace(left.spec, model="two"))
    engine.submit(moved, whole(sample), other)
    engine.submit(replace(left, id="again", index=0, latents=None), whole(sample), again)
    drain(engine)
    assert isinstance(other.failed.error, ProfileChanged)
    assert again.finished


def test_a_model_that_is_not_known_or_can_not_be_loaded_ends_its_own_samples_alone() -> None:
    def broken(to_come: int, before: MemoryPlan | None) -> StageModel:
        raise OSError("/secret/place is gone")

    def too_large(to_come: int, before: MemoryPlan | None) -> StageModel:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = maker(ConstantDenoiser(), model="first")
    shelf = ModelCache(by_base_key({"first": first, "broken": broken, "large": too_large}))
    engine = Engine(shelf, snapshot_every=5)
    heard = {name: Heard() for name in ("first", "broken", "large", "other")}
    for _ in range(2):
        for name, listener in heard.items():
            listener.events.clear()
            sample = sample_of(replace(SPEC, width=64, height=64, model=name), name)
            engine.submit(sample, whole(sample), listener)
        drain(engine)
        assert heard["first"].finished
        assert isinstance(heard["other"].failed.error, ModelNotFound)
        for name, reported in (("broken", "log says why"), ("large", "MAX_LOADED_MODELS")):
            error = heard[name].failed.error
            assert isinstance(error, ModelUnavailable)
            assert reported in str(error)
            assert "secret" not in str(error)
    engine.check()


@pytest.mark.parametrize("rounds", [12, pytest.param(100, marks=pytest.mark.long)])
def test_switching_leaves_nothing_behind(
    both: dict[str, Checkpoint], cpu: Device, rounds: int
) -> None:
    """Of modules none; of memory less than one model, where each one kept would be one more.

    Of Python's own objects 64 KB a switch are allowed: safetensors' reader leaves some 65 bytes a
    tensor behind, 21 KB for the demo's UNet, when nothing of ours is there at all.
    """
    seen: list[weakref.ref[StageModel]] = []

    def watched(make: Loader, to_come: int, before: MemoryPlan | None) -> StageModel:
        assert not any(item() for item in seen), "one is made before the last has left"
        model = make(to_come, before)
        seen.append(weakref.ref(model))
        return model

    made = {
        name: partial(build_stage_model, item, cpu, images=1, strict=False)
        for name, item in both.items()
    }
    shelf = ModelCache({base_key(name): partial(watched, make) for name, make in made.items()})
    engine, process = Engine(shelf, snapshot_every=1), psutil.Process()
    pictures: dict[str, set[bytes]] = {name: set() for name in both}

    def switch(times: int) -> None:
        for number in range(times):
            name = ("tune", "demo")[number % 2]
            spec = replace(SPEC, model=name, steps=1, guidance=1.0)
            pictures[name] |= set(painted(engine, spec))
        gc.collect()

    switch(rounds // 3 // 2 * 2)  # until caches and pools are filled
    tracemalloc.start()
    switch(2)  # what is in memory at the end is traced at the beginning too
    resident, (traced, _) = process.memory_info().rss, tracemalloc.get_traced_memory()
    switch(rest := rounds - len(seen) + 1)
    grown, left = process.memory_info().rss - resident, tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    print(f"{rest} rounds: resident {grown / 2**20:+.1f} MB, Python's own {left / 2**10:+.0f} KB")
    assert len(seen) == rounds + 1
    assert [item for item in seen if item() is not None] == seen[-1:]
    assert tuple(shelf.batch_sizes) == (base_key("demo"),)
    assert {name: len(kinds) for name, kinds in pictures.items()} == {"demo": 1, "tune": 1}
    assert pictures["demo"] != pictures["tune"]
    weights = sum(f.stat().st_size for f in both["demo"].folder.rglob("*.safetensors"))
    assert grown < 2 * weights  # which are half precision in the files
    assert left < 64_000 * rest


def test_a_failure_that_is_reported_again_and_again_keeps_hold_of_nobody() -> None:
    def broken(to_come: int, before: MemoryPlan | None) -> StageModel:
        raise OSError("gone")

    shelf = ModelCache(by_base_key({"first": maker(ConstantDenoiser()), "broken": broken}))
    with pytest.raises(ModelUnavailable):
        shelf.load(base_key("broken"), [])
    reported = []
    for _ in range(3):
        with pytest.raises(ModelUnavailable) as refused:
            shelf.admit(sample_of(replace(SPEC, model="broken")))
        reported.append(refused.value)
    assert len({str(error) for error in reported}) == 1
    assert len({id(error) for error in reported}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in reported}) == 1


class Wardrobe:
    """The contract of adapters, with nothing to wear."""

    def __init__(self) -> None:
        self.attached: tuple[str, ...] = ()
        self.worn: tuple[ExtensionRef, ...] = ()

    def attach(self, name: str) -> None:
        self.attached = (*self.attached, name)

    def detach(self, name: str) -> None:
        self.activate(())
        self.attached = tuple(item for item in self.attached if item != name)

    def activate(self, loras: tuple[ExtensionRef, ...]) -> None:
        assert {lora.name for lora in loras} <= set(self.attached)
        self.worn = loras


def test_a_lora_that_was_not_proved_is_not_worn() -> None:
    denoiser, wardrobe = ConstantDenoiser(), Wardrobe()
    model = analytic_model(denoiser, extensions={"lora": wardrobe})
    shelf = ModelCache.of(model)
    denoiser.failures.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ModelUnavailable, match=r"no room for the LoRA ink\. .* MAX_LOADED_LORAS"):
        shelf.attach(shelf.default, lora_key("ink"), [])
    assert (shelf.attached_extensions, wardrobe.worn) == ({shelf.default: ()}, ())
    shelf.attach(shelf.default, lora_key("ink"), [])
    assert shelf.attached_extensions == {shelf.default: (lora_key("ink"),)}
    shelf.attach(shelf.default, lora_key("oil"), [lora_key("ink")])
    assert shelf.attached_extensions == {shelf.default: (lora_key("oil"),)}
