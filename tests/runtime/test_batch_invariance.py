"""Strict mode's promise: the same bytes alone, in any slot, beside anybody, and resumed."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.png import encode_png
from serve_app.runtime.stage_model import StageModel
from tests.support.demo_models import IMAGES, Engines
from tests.support.engine_runs import Heard, drain, run_images, sample_of, whole

SPEC = ImageSpec(
    prompt="a red fox in the snow", seed=7, width=128, height=128, steps=6, guidance=6.9
)
SPECS = {
    "euler": SPEC,
    "unguided": replace(SPEC, guidance=1.0),
    "euler_a": replace(SPEC, sampler=Sampler.EULER_A, negative_prompt="blur"),
    "dpmpp_2m_karras": replace(SPEC, sampler=Sampler.DPMPP_2M_KARRAS),
    "unipc": replace(SPEC, sampler=Sampler.UNIPC),
    "heun": replace(SPEC, sampler=Sampler.HEUN),
    "dpmpp_sde_karras": replace(SPEC, sampler=Sampler.DPMPP_SDE_KARRAS),
    "odd size": replace(SPEC, width=152, height=104, sampler=Sampler.DPMPP_2M),
    "guidance interval": replace(SPEC, guidance_interval=(0.6, 6.0)),
    "deepcache in an interval": replace(
        SPEC, cache=StepCache.DEEPCACHE, guidance_interval=(0.6, 6.0)
    ),
    "three chunks": replace(SPEC, prompt="a red fox BREAK in the (deep:1.4) snow BREAK at night"),
}
# Kernels depend on the rows, the size and the chunks alone. The rest is arithmetic by row: one slot
# is enough for it, and the long tests have every slot.
ALL_SLOTS = ("euler", "unguided", "odd size", "three chunks")
requests = pytest.mark.parametrize("spec", list(SPECS.values()), ids=list(SPECS))
seated = pytest.mark.parametrize(
    ("spec", "slot"),
    [
        pytest.param(
            spec,
            slot,
            marks=() if name in ALL_SLOTS or slot == IMAGES - 1 else pytest.mark.long,
            id=f"{name}-{slot}",
        )
        for name, spec in SPECS.items()
        for slot in range(IMAGES)
    ],
)


@pytest.fixture(scope="module")
def alone(models: dict[str, dict[Stage, StageModel]]) -> Callable[[ImageSpec], bytes]:
    """The bytes of an image that shared its batches with no other."""

    @cache
    def drawn(spec: ImageSpec) -> bytes:
        engine = Engine(ModelCache.of(models["strict"][Stage.BASE]), snapshot_every=1)
        return encode_png(run_images({Stage.BASE: engine}, [(spec, None)])[0])

    return drawn


def random_spec(draw: random.Random, like: ImageSpec) -> ImageSpec:
    """Anybody who may share a batch: another prompt of as many chunks, another seed, sampler,
    guidance and number of steps."""
    more = " BREAK and more" * like.prompt.count("BREAK")
    return replace(
        like,
        prompt=f"other {draw.random()}{more}",
        seed=draw.randrange(2**32),
        steps=draw.randrange(1, 16),
        guidance=draw.choice([1.0, 1.5, 5.0, 9.0]),
        # Heun's steps take twice the calls, which would change the order of urgency.
        sampler=draw.choice([s for s in Sampler if s.nfe == like.sampler.nfe]),
        negative_prompt=draw.choice([None, "", "dull"]),
    )


@seated
def test_the_bytes_are_the_same_in_every_slot_beside_other_images(
    engines: Engines, alone: Callable[[ImageSpec], bytes], spec: ImageSpec, slot: int
) -> None:
    draw = random.Random(slot)
    # The most urgent sits in the first slot: shorter images come before, longer ones after.
    specs = [
        replace(random_spec(draw, spec), steps=spec.steps - 1 if place < slot else spec.steps + 5)
        for place in range(IMAGES - 1)
    ]
    specs.insert(slot, spec)
    pictures = run_images(engines(), [(spec, None) for spec in specs])
    assert encode_png(pictures[slot]) == alone(spec)


@requests
def test_the_bytes_are_the_same_when_other_images_come_and_go(
    engines: Engines, alone: Callable[[ImageSpec], bytes], spec: ImageSpec
) -> None:
    draw = random.Random(3)
    engine = engines()[Stage.BASE]
    heard, ignored = Heard(), Heard()
    engine.submit(sample_of(spec), whole(sample_of(spec)), heard)
    number = 0
    while not heard.ended:
        if draw.random() < 0.4:
            number += 1
            other = replace(
                random_spec(draw, spec),
                guidance_interval=draw.choice([None, (0.0, 2.0), (1.0, 9.0)]),
                cache=draw.choice(list(StepCache)),
            )
            if draw.random() < 0.3:  # an image that can't share the batch
                other = replace(other, prompt=f"{other.prompt} BREAK again")
            sample = sample_of(other, f"other {number}")
            engine.submit(sample, whole(sample), ignored)
        if draw.random() < 0.2:
            engine.cancel(f"other {draw.randrange(1, number + 2)}", ignored)
        engine.turn()
    engine.close()
    assert number > 2
    assert encode_png(heard.picture) == alone(spec)


@requests
def test_the_bytes_are_the_same_continued_from_a_snapshot_at_every_step(
    engines: Engines, spec: ImageSpec
) -> None:
    clock = iter(range(10**6))  # one second per reading: every step is late enough for a snapshot
    template = engines()[Stage.BASE]
    first = Engine(template.models, snapshot_every=1, clock=lambda: next(clock))
    heard, segment = Heard(), whole(sample_of(spec))
    first.submit(sample_of(spec), segment, heard)
    drain(first)
    full = [
        index
        for index in range(1, segment.stop + 1)
        if not replace(sample_of(spec), index=index).is_shallow
    ]
    assert [s.index for s in heard.snapshots] == full
    elsewhere, resumed = engines()[Stage.BASE], [Heard() for _ in heard.snapshots]
    for snapshot, listener in zip(heard.snapshots, resumed, strict=True):
        elsewhere.submit(replace(snapshot, id=f"from {snapshot.index}"), segment, listener)
    drain(elsewhere)
    for snapshot, listener in zip(heard.snapshots, resumed, strict=True):
        assert encode_png(listener.picture) == encode_png(heard.picture), snapshot.index
    assert elsewhere.stats().steps == sum(
        segment.stop - snapshot.index for snapshot in heard.snapshots
    )


@pytest.mark.parametrize("more", ["", " BREAK on a (hill:1.2) BREAK at night"])
def test_the_bytes_are_the_same_through_base_and_refiner_in_a_batch(
    engines: Engines, more: str
) -> None:
    spec = replace(SPEC, prompt=SPEC.prompt + more, handoff=0.6, sampler=Sampler.EULER_A)
    draw = random.Random(5)
    specs = [spec, *(replace(random_spec(draw, spec), handoff=0.6) for _ in range(5))]
    together = run_images(engines(refiner=True), [(spec, None) for spec in specs])
    alone = run_images(engines(refiner=True), [(spec, None)])
    assert encode_png(together[0]) == encode_png(alone[0])


def test_the_bytes_are_the_same_beside_prompts_of_other_lengths(
    engines: Engines, alone: Callable[[ImageSpec], bytes]
) -> None:
    long = SPECS["three chunks"]
    specs = [SPEC, long, replace(SPECS["euler_a"], negative_prompt="blur BREAK grey"), SPEC, long]
    pictures = run_images(engines(), [(spec, None) for spec in specs])
    assert [encode_png(picture) for picture in pictures] == [alone(spec) for spec in specs]
    assert alone(SPEC) != alone(long)


def test_the_bytes_are_the_same_from_an_init_image_in_a_batch(
    engines: Engines, photo: bytes
) -> None:
    spec = replace(SPEC, strength=0.6, sampler=Sampler.DPMPP_2M)
    draw = random.Random(6)
    together = run_images(
        engines(), [(spec, photo), *((random_spec(draw, SPEC), None) for _ in range(4))]
    )
    alone = run_images(engines(), [(spec, photo)])
    assert encode_png(together[0]) == encode_png(alone[0])


def test_another_batch_size_does_change_the_last_bits(engines: Engines) -> None:
    """The control: what strict mode forbids does change bits, so its tests can fail."""
    draw = random.Random(7)
    latents = []
    for specs in ([], [random_spec(draw, SPEC) for _ in range(3)]):
        engine, heard = engines("fast")[Stage.BASE], Heard()
        segment = StageSegment(Stage.BASE, SPEC.steps, last=True)
        engine.submit(sample_of(SPEC), segment, heard)
        for number, other in enumerate(specs):
            other_segment = StageSegment(Stage.BASE, other.steps, last=True)
            engine.submit(sample_of(other, f"other {number}"), other_segment, Heard())
        drain(engine)
        finished = heard.finished.sample.latents
        assert finished is not None
        latents.append(finished)
    assert not np.array_equal(latents[0], latents[1])
