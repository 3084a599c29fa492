"""DeepCache against the package of its authors, and what its steps are grouped with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from DeepCache import DeepCacheSDHelper

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.diffusion.step_kind import CACHE_INTERVAL
from serve_app.core.errors import ReplicaLost
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
from serve_app.runtime.live_sample import to_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.demo_models import Engines
from tests.support.engine_runs import Heard, drain, run_images, sample_of, whole
from tests.support.reference_diffusers import Stock

LEVELS = 2  # of 255
SPEC = ImageSpec(
    prompt="a red fox in the snow",
    seed=7,
    width=128,
    height=128,
    steps=12,
    guidance=6.9,
    cache=StepCache.DEEPCACHE,
)


@contextmanager
def deep_cache(*pipelines: Any) -> Iterator[None]:
    """Let stock pipelines use the package, as its readme says."""
    helpers = []
    for pipeline in pipelines:
        helper = DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(cache_interval=CACHE_INTERVAL, cache_branch_id=0)
        helper.enable()
        helpers.append(helper)
    yield
    for helper in helpers:
        helper.disable()


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(np.int16) - theirs).max())


@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        (Sampler.EULER, 6.9),
        (Sampler.DPMPP_2M_KARRAS, 1.0),
        pytest.param(Sampler.EULER_A, 6.9, marks=pytest.mark.long),
        pytest.param(Sampler.DPMPP_2M_KARRAS, 6.9, marks=pytest.mark.long),
    ],
)
def test_an_image_with_deepcache_is_that_of_the_package(
    engines: Engines, stock: Stock, sampler: Sampler, guidance: float
) -> None:
    requested = replace(SPEC, sampler=sampler, guidance=guidance)
    (picture,) = run_images(engines(), [(requested, None)])
    with deep_cache(stock.base):
        theirs = stock.image(requested)
    assert distance(picture, theirs) <= LEVELS
    without = stock.image(replace(requested, cache=StepCache.OFF))
    assert distance(picture, without) > 5 * LEVELS


def test_base_and_refiner_with_deepcache_are_those_of_the_package(
    engines: Engines, stock: Stock
) -> None:
    requested = replace(SPEC, steps=15, handoff=0.6)
    (picture,) = run_images(engines(refiner=True), [(requested, None)])
    with deep_cache(stock.base, stock.refiner):
        theirs = stock.image(requested, refine=True)
    assert distance(picture, theirs) <= LEVELS


def test_an_image_whose_steps_are_all_full_has_the_bytes_of_one_without_a_cache(
    engines: Engines,
) -> None:
    (cached,) = run_images(engines(), [(replace(SPEC, steps=1), None)])
    (plain,) = run_images(engines(), [(replace(SPEC, steps=1, cache=StepCache.OFF), None)])
    assert cached.tobytes() == plain.tobytes()


def test_shallow_steps_share_no_call_with_full_ones_and_all_images_end(
    models: dict[str, dict[Stage, StageModel]],
) -> None:
    steps: list[StepRecord] = []
    engine = Engine(
        ModelCache.of(models["strict"][Stage.BASE]), snapshot_every=100, on_step=steps.append
    )
    specs = {"plain": replace(SPEC, cache=StepCache.OFF), "one": SPEC, "two": SPEC}
    heard = {id: Heard() for id in specs}
    for id, spec in specs.items():
        engine.submit(sample_of(spec, id), whole(sample_of(spec)), heard[id])
    drain(engine)
    assert all(listener.finished for listener in heard.values())
    companies = {frozenset(step.ids) for step in steps}
    assert {"one", "two"} in companies  # at shallow steps
    assert {"plain", "one", "two"} in companies  # at a full one


def test_a_replica_that_closes_hands_on_what_another_one_can_continue_to_the_same_bytes(
    engines: Engines,
) -> None:
    (expected,) = run_images(engines(), [(SPEC, None)])
    for turns in (3, 6):  # a prompt, and two or five steps
        engine, heard = engines()[Stage.BASE], Heard()
        engine.submit(sample_of(SPEC), whole(sample_of(SPEC)), heard)
        for _ in range(turns):
            engine.turn()
        engine.close()
        assert isinstance(heard.failed.error, ReplicaLost)
        snapshots = heard.snapshots or [sample_of(SPEC)]
        assert snapshots[-1].index == (turns - 1) // CACHE_INTERVAL * CACHE_INTERVAL
        other, continued = engines()[Stage.BASE], Heard()
        other.submit(snapshots[-1], whole(sample_of(SPEC)), continued)
        drain(other)
        assert continued.picture.tobytes() == expected.tobytes()


def test_features_that_a_failed_step_may_not_have_made_are_not_reused(
    models: dict[str, dict[Stage, StageModel]],
) -> None:
    model = models["fast"][Stage.BASE]
    sample = model.condition(to_device(sample_of(SPEC), torch.device("cpu")))
    (stepped,) = model.step([sample], 2)
    (_,) = model.step([stepped], 2)  # shallow, with the features of the first step
    model.forget_steps([stepped])
    with pytest.raises(ValueError, match="without the features of a full one"):
        model.step([stepped], 2)
    (_,) = model.step([sample], 2)
    (_,) = model.step([stepped], 2)
    model.forget(sample.id)
