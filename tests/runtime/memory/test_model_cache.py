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
from tests.support.analytic_model import ConstantDenoiser, RecordingExtension, analytic_model
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
    """Return a loader of an analytic model that ignores how much memory to reserve."""
    return lambda reserve_for, previous_plan: analytic_model(denoiser, **options)


def makers(both: dict[str, Checkpoint], cpu: Device, images: int = IMAGES) -> Makers:
    return {
        base_key(name): partial(build_stage_model, checkpoint, cpu, images=images, strict=True)
        for name, checkpoint in both.items()
    }


def generate(engine: Engine, *specs: ImageSpec) -> list[bytes]:
    heard = [Heard() for _ in specs]
    for number, (spec, listener) in enumerate(zip(specs, heard, strict=True)):
        sample = sample_of(spec, f"image {number}")
        engine.submit(sample, whole(sample), listener)
    drain(engine)
    return [listener.picture.tobytes() for listener in heard]


def mixed_specs() -> list[ImageSpec]:
    """Both models at once, with every option that may differ between images."""
    return [
        replace(SPEC, model="demo"),
        replace(SPEC, model="tune"),
        replace(SPEC, model="tune", seed=8, guidance=1.0, sampler=Sampler.EULER_A),
        replace(SPEC, model="demo", seed=9, steps=9, negative_prompt="blur"),
        replace(SPEC, model="tune", seed=7, steps=3),
    ]


@pytest.fixture(scope="module")
def alone(both: dict[str, Checkpoint], cpu: Device) -> list[bytes]:
    """Return the images of `mixed_specs`, one after the other on engines with one model each."""
    engines = {
        name: Engine(ModelCache(makers({name: model}, cpu)), snapshot_every=1)
        for name, model in both.items()
    }
    return [image for spec in mixed_specs() for image in generate(engines[str(spec.model)], spec)]


@pytest.mark.parametrize("capacity", [1, 2])
def test_two_models_requested_together_make_the_images_that_each_makes_alone(
    both: dict[str, Checkpoint], cpu: Device, alone: list[bytes], capacity: int
) -> None:
    together = Engine(ModelCache(makers(both, cpu), capacity=capacity), snapshot_every=1)
    assert generate(together, *mixed_specs()) == alone
    assert len(set(alone)) == len(alone)
    assert len(together.models.batch_sizes) == capacity


def test_batches_never_mix_models() -> None:
    """Each model has its own shade, so that a row in the wrong batch would show."""
    shades = {"light": 0.75, "dark": 0.25}
    denoisers = {name: ConstantDenoiser(shade) for name, shade in shades.items()}
    cache = ModelCache(
        {base_key(name): maker(d, model=name) for name, d in denoisers.items()}, capacity=2
    )
    engine = Engine(cache, snapshot_every=5)
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


def test_each_model_keeps_its_own_memory_plan_and_names_its_savings() -> None:
    """A larger model fits one image only; the other steps four."""
    small, large = ConstantDenoiser(0.75), ConstantDenoiser(0.25)
    cache = ModelCache(
        {
            base_key("small"): maker(small, model="small"),
            base_key("large"): maker(large, model="large", lanes=2, images=1),
        },
        capacity=2,
    )
    engine = Engine(cache, snapshot_every=5)
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
    profiles = {
        name: {listener.finished.sample.profile for listener in heard[name]} for name in heard
    }
    assert profiles == {name: {cache[base_key(name)].profile.name} for name in heard}


def test_a_model_reloaded_with_another_plan_does_not_continue_its_old_snapshots() -> None:
    fits = iter([(8, 4), (2, 1)])

    def refitted(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        lanes, images = next(fits)
        return analytic_model(ConstantDenoiser(), model="one", lanes=lanes, images=images)

    cache = ModelCache(by_base_key({"one": refitted, "two": maker(ConstantDenoiser())}))
    engine = Engine(cache, snapshot_every=5)
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
    """A reference cycle, as networks are: only the garbage collector frees it."""

    def __init__(self) -> None:
        super().__init__()
        self.me = self


@pytest.fixture
def no_sweeper() -> Iterator[None]:
    """Disable the garbage collector, so that it runs only when a test calls it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_sweeper")
def test_a_model_has_left_memory_before_the_next_is_built() -> None:
    seen: list[weakref.ref[Ring]] = []

    def watched(name: str, reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        assert not any(model() for model in seen), "a model is built before the last has left"
        seen.append(weakref.ref(ring := Ring()))
        return analytic_model(ring, model=name)

    loaders: Makers = {base_key(name): partial(watched, name) for name in "ab"}
    engine = Engine(ModelCache(loaders), snapshot_every=5)
    for number in range(4):
        spec = replace(SPEC, width=64, height=64, model="ab"[number % 2])
        generate(engine, replace(spec, seed=number))
    assert len(seen) == 4


def test_a_reloaded_model_gets_its_previous_memory_plan() -> None:
    heard: list[MemoryPlan | None] = []

    def listening(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        heard.append(previous_plan)
        return analytic_model(ConstantDenoiser(), model="one", lanes=2, images=1)

    first, two = base_key("one"), base_key("two")
    cache = ModelCache({first: listening, two: maker(ConstantDenoiser(), model="two")})
    cache.load(two, [first])
    cache.load(first, [two])
    assert heard == [None, MemoryPlan(1)]


def test_a_model_that_failed_to_load_evicts_no_other_for_a_minute() -> None:
    now, tries = [0.0], []

    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        tries.append(now[0])
        raise OSError("no such file")

    cache = ModelCache(
        by_base_key({"one": maker(ConstantDenoiser(), model="one"), "bad": broken}),
        clock=lambda: now[0],
    )
    sample = sample_of(replace(SPEC, model="bad"), "x")
    with pytest.raises(ModelUnavailable):
        cache.load(base_key("bad"), [])
    for now[0] in (0.0, 59.0):
        with pytest.raises(ModelUnavailable, match="the model bad can't be loaded"):
            cache.admit(sample)
    now[0] = 60.0
    assert cache.admit(sample) == sample
    assert tries == [0.0]


@pytest.mark.parametrize(("capacity", "reported"), [(1, [0, 0, 0]), (2, [1, 0, 0]), (9, [2, 1, 0])])
def test_each_loader_gets_the_number_of_models_to_reserve_memory_for(
    capacity: int, reported: list[int]
) -> None:
    heard: list[int] = []

    def listening(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        heard.append(reserve_for)
        return analytic_model(ConstantDenoiser())

    loaders = by_base_key(dict.fromkeys("abc", listening))
    engine = Engine(ModelCache(loaders, capacity=capacity), snapshot_every=5)
    for name in "bc":
        generate(engine, replace(SPEC, width=64, height=64, model=name))
    assert heard == reported


def test_a_model_that_failed_to_load_is_freed_though_its_error_is_kept() -> None:
    made: list[weakref.ref[ConstantDenoiser]] = []

    def half_built(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        part = ConstantDenoiser()
        made.append(weakref.ref(part))
        raise DeviceFull("the device has no room for one image")

    cache = ModelCache(by_base_key({"first": maker(ConstantDenoiser()), "half": half_built}))
    with pytest.raises(ModelUnavailable, match="no room for the model half") as failed:
        cache.load(base_key("half"), [base_key("first")])
    assert isinstance(failed.value.__cause__, DeviceFull)
    assert made[0]() is None
    assert cache.batch_sizes == {}


def test_a_snapshot_of_one_model_is_refused_by_another() -> None:
    denoiser = ConstantDenoiser()
    names = ("one", "two")
    cache = ModelCache({base_key(n): maker(denoiser, model=n) for n in names}, capacity=2)
    engine, heard = Engine(cache, snapshot_every=1), Heard()
    sample = sample_of(replace(SPEC, width=64, height=64, model="one"))
    engine.submit(sample, whole(sample), heard)
    drain(engine)
    left = heard.finished.sample
    assert left.profile == cache[base_key("one")].profile.name
    other, again = Heard(), Heard()
    moved = replace(left, id="moved", spec=replace(left.spec, model="two"))
    engine.submit(moved, whole(sample), other)
    engine.submit(replace(left, id="again", index=0, latents=None), whole(sample), again)
    drain(engine)
    assert isinstance(other.failed.error, ProfileChanged)
    assert again.finished


def test_an_unknown_or_unloadable_model_ends_only_its_own_samples() -> None:
    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise OSError("/secret/place is gone")

    def too_large(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = maker(ConstantDenoiser(), model="first")
    cache = ModelCache(by_base_key({"first": first, "broken": broken, "large": too_large}))
    engine = Engine(cache, snapshot_every=5)
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


@pytest.mark.long
def test_switching_leaks_no_memory(both: dict[str, Checkpoint], cpu: Device) -> None:
    """No module stays, and memory grows by less than one model.

    Of Python's own objects 64 KB a switch are allowed: safetensors' reader leaves some 65 bytes a
    tensor behind, 21 KB for the demo's UNet, even without any of our code.
    """
    seen: list[weakref.ref[StageModel]] = []

    def watched(make: Loader, reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        assert not any(model() for model in seen), "a model is built before the last has left"
        model = make(reserve_for, previous_plan)
        seen.append(weakref.ref(model))
        return model

    made = {
        name: partial(build_stage_model, checkpoint, cpu, images=1, strict=False)
        for name, checkpoint in both.items()
    }
    cache = ModelCache({base_key(name): partial(watched, make) for name, make in made.items()})
    engine, process = Engine(cache, snapshot_every=1), psutil.Process()
    pictures: dict[str, set[bytes]] = {name: set() for name in both}

    def switch(times: int) -> None:
        for number in range(times):
            name = ("tune", "demo")[number % 2]
            spec = replace(SPEC, model=name, steps=1, guidance=1.0)
            pictures[name] |= set(generate(engine, spec))
        gc.collect()

    switch(ROUNDS // 3 // 2 * 2)  # until caches and pools are filled
    tracemalloc.start()
    switch(2)  # what is in memory at the end is traced at the beginning too
    resident, (traced, _) = process.memory_info().rss, tracemalloc.get_traced_memory()
    switch(rest := ROUNDS - len(seen) + 1)
    grown, left = process.memory_info().rss - resident, tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    print(f"{rest} rounds: resident {grown / 2**20:+.1f} MB, Python's own {left / 2**10:+.0f} KB")
    assert len(seen) == ROUNDS + 1
    assert [model for model in seen if model() is not None] == seen[-1:]
    assert tuple(cache.batch_sizes) == (base_key("demo"),)
    assert {name: len(kinds) for name, kinds in pictures.items()} == {"demo": 1, "tune": 1}
    assert pictures["demo"] != pictures["tune"]
    weights = sum(f.stat().st_size for f in both["demo"].folder.rglob("*.safetensors"))
    assert grown < 2 * weights  # which are half precision in the files
    assert left < 64_000 * rest


def test_an_error_that_is_raised_repeatedly_keeps_no_caller_alive() -> None:
    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise OSError("gone")

    cache = ModelCache(by_base_key({"first": maker(ConstantDenoiser()), "broken": broken}))
    with pytest.raises(ModelUnavailable):
        cache.load(base_key("broken"), [])
    reported = []
    for _ in range(3):
        with pytest.raises(ModelUnavailable) as refused:
            cache.admit(sample_of(replace(SPEC, model="broken")))
        reported.append(refused.value)
    assert len({str(error) for error in reported}) == 1
    assert len({id(error) for error in reported}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in reported}) == 1


def test_a_lora_that_was_not_verified_is_not_attached() -> None:
    denoiser, extensions = ConstantDenoiser(), RecordingExtension()
    model = analytic_model(denoiser, extensions={"lora": extensions})
    cache = ModelCache.of(model)
    denoiser.failures.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ModelUnavailable, match=r"no room for the LoRA ink\. .* MAX_LOADED_LORAS"):
        cache.attach(cache.default, lora_key("ink"), [])
    assert (cache.attached_extensions, extensions.active) == ({cache.default: ()}, ())
    cache.attach(cache.default, lora_key("ink"), [])
    assert cache.attached_extensions == {cache.default: (lora_key("ink"),)}
    cache.attach(cache.default, lora_key("oil"), [lora_key("ink")])
    assert cache.attached_extensions == {cache.default: (lora_key("oil"),)}
