"""Models that take turns on the card: the same bytes as apart, and each is built once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceFull, ModelUnavailable
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.engine_runs import drain, run_images, sample_of
from tests.support.keys import REFINER, base_key
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
    return made_by(models["strict"])


def made_by(models: Mapping[Stage, StageModel]) -> list[bytes]:
    two = {stage: Engine(ModelCache.of(model), snapshot_every=9) for stage, model in models.items()}
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
    checkpoints: dict[Stage, Checkpoint], cpu: Device, card: SimulatedCard
) -> None:
    """From the first swap on, the card fits exactly the larger model alone."""
    plain = replace(cpu, prepacked=False)  # as a card computes
    both = {
        stage: build_stage_model(checkpoint, plain, images=4, strict=True)
        for stage, checkpoint in checkpoints.items()
    }
    expected, sizes = made_by(both)[:2], []

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
        assert generate_interleaved(engine, SPECS[:2]) == expected
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
        pytest.param(2, ["r"], "bcbrar", "arbca", marks=pytest.mark.long),
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
