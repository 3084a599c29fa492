"""Several checkpoints on one replica: each picture is its own model's, to the byte."""

import gc
import tracemalloc
import weakref
from dataclasses import replace
from functools import partial

import psutil
import pytest

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import ProfileChanged
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import (
    ConstantDenoiser,
    analytic_loader,
)
from tests.support.checkpoints import perturbed
from tests.support.demo_models import IMAGES
from tests.support.engine_runs import Heard, drain, generate, sample_of, whole
from tests.support.keys import base_key, by_base_key

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


def makers(both: dict[str, Checkpoint], cpu: Device, images: int = IMAGES) -> Makers:
    return {
        base_key(name): partial(build_stage_model, checkpoint, cpu, images=images, strict=True)
        for name, checkpoint in both.items()
    }


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


@pytest.mark.parametrize("capacity", [1, pytest.param(2, marks=pytest.mark.long)])
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
        {base_key(name): analytic_loader(d, model=name) for name, d in denoisers.items()},
        capacity=2,
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
            base_key("small"): analytic_loader(small, model="small"),
            base_key("large"): analytic_loader(large, model="large", lane_counts=(2,), images=1),
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


def test_a_snapshot_of_one_model_is_refused_by_another() -> None:
    denoiser = ConstantDenoiser()
    names = ("one", "two")
    cache = ModelCache({base_key(n): analytic_loader(denoiser, model=n) for n in names}, capacity=2)
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
