"""Which models are in memory, and that what is dropped leaves nothing behind."""

import gc
import traceback
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import DeviceFull, ModelNotFound, ModelUnavailable, ProfileChanged
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import (
    ConstantDenoiser,
    RecordingExtension,
    analytic_loader,
    analytic_model,
)
from tests.support.engine_runs import Heard, drain, generate, sample_of, whole
from tests.support.keys import base_key, by_base_key, lora_key

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=5, guidance=5)


Makers = dict[ModelKey, Loader]


def test_a_model_reloaded_with_another_plan_does_not_continue_its_old_snapshots() -> None:
    fits = iter([(8, 4), (2, 1)])

    def refitted(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        lanes, images = next(fits)
        return analytic_model(ConstantDenoiser(), model="one", lane_counts=(lanes,), images=images)

    cache = ModelCache(by_base_key({"one": refitted, "two": analytic_loader(ConstantDenoiser())}))
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
        return analytic_model(ConstantDenoiser(), model="one", lane_counts=(2,), images=1)

    first, two = base_key("one"), base_key("two")
    cache = ModelCache({first: listening, two: analytic_loader(ConstantDenoiser(), model="two")})
    cache.load(two, [first])
    cache.load(first, [two])
    assert heard == [None, MemoryPlan(1)]


def test_a_model_that_failed_to_load_evicts_no_other_for_a_minute() -> None:
    now, tries = [0.0], []

    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        tries.append(now[0])
        raise OSError("no such file")

    cache = ModelCache(
        by_base_key({"one": analytic_loader(ConstantDenoiser(), model="one"), "bad": broken}),
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

    cache = ModelCache(
        by_base_key({"first": analytic_loader(ConstantDenoiser()), "half": half_built})
    )
    with pytest.raises(ModelUnavailable, match="no room for the model half") as failed:
        cache.load(base_key("half"), [base_key("first")])
    assert isinstance(failed.value.__cause__, DeviceFull)
    assert made[0]() is None
    assert cache.batch_sizes == {}


def test_an_unknown_or_unloadable_model_ends_only_its_own_samples() -> None:
    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise OSError("/secret/place is gone")

    def too_large(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = analytic_loader(ConstantDenoiser(), model="first")
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


def test_an_error_that_is_raised_repeatedly_keeps_no_caller_alive() -> None:
    def broken(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        raise OSError("gone")

    cache = ModelCache(
        by_base_key({"first": analytic_loader(ConstantDenoiser()), "broken": broken})
    )
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
