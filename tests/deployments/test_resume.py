"""Images that another process has begun: they go on where it left them, and to the same bytes."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import OutOfMemory, ProfileChanged
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import GeneratedImage, SegmentDone, Snapshot, last_image
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.metrics import IMAGES_RESUMED, InMemoryMeter, ResumeReason
from serve_app.core.service.tasks import ImageSnapshot, ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import perturbed
from tests.support.conductors import SPEC, conductor_of
from tests.support.engine_runs import NOISE
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.stage_doubles import CountingStage, Fault, dies_at
from tests.support.waiting import until_async


@pytest.fixture(scope="module")
def replica() -> Iterator[StageReplica]:
    replica = StageReplica(cpu_stage([ModelSource("demo", None)]))
    yield replica
    replica.close()


async def test_an_image_goes_on_from_a_snapshot_that_comes_with_its_task() -> None:
    base, refiner = CountingStage(), CountingStage()
    first = conductor_of(CountingStage(fault=fails_at(13)))
    snapshot = await snapshot_before_failure(first)
    assert snapshot.sample.index == 10
    task = ImageTask(id="a", spec=SPEC, resume=snapshot)
    image = await last_image(conductor_of(base, refiner).run(task))
    assert [index for index, _ in base.calls] == [10]
    assert (image.png, base.steps, refiner.steps) == (b"png 20", 6, 4)
    assert image.profiles == ((Stage.BASE, "p"), (Stage.REFINER, "p"))


async def test_an_image_in_the_middle_of_the_refiner_does_not_go_back_to_base() -> None:
    base, refiner = CountingStage(), CountingStage()
    first = conductor_of(CountingStage(), CountingStage(every=1, fault=fails_at(18)))
    snapshot = await snapshot_before_failure(first)
    task = ImageTask(id="a", spec=SPEC, resume=snapshot)
    image = await last_image(conductor_of(base, refiner).run(task))
    assert (base.calls, [index for index, _ in refiner.calls]) == ([], [18])
    assert image.profiles == ((Stage.BASE, "p"), (Stage.REFINER, "p"))


async def test_a_retaken_image_goes_on_from_the_furthest_snapshot_that_replicas_have_kept() -> None:
    meter = InMemoryMeter()
    base, refiner = CountingStage(), CountingStage()
    for stage, index in ((base, 5), (refiner, 10)):
        failing = CountingStage(fault=fails_at(index + 1))
        stage.kept["a"] = await snapshot_before_failure(conductor_of(failing))
    models = [ModelInfo("demo", 64, NOISE)]
    conductor = Conductor(base, refiner, models, meter)
    await last_image(conductor.run(ImageTask(id="a", spec=SPEC, is_retaken=True)))
    assert [index for index, _ in base.calls] == [10]
    assert meter.value(IMAGES_RESUMED, reason=ResumeReason.RETAKEN) == 1


async def test_a_new_image_and_one_of_another_spec_begin_at_the_first_step() -> None:
    failing = CountingStage(fault=fails_at(13))
    kept = await snapshot_before_failure(conductor_of(failing))
    for task in (
        ImageTask(id="a", spec=SPEC),
        ImageTask(id="a", spec=replace(SPEC, seed=2), is_retaken=True),
    ):
        base = CountingStage()
        base.kept["a"] = kept
        await last_image(conductor_of(base).run(task))
        assert [index for index, _ in base.calls] == [0]


async def test_a_retaken_image_that_is_done_takes_no_step() -> None:
    stage = CountingStage()
    conductor = conductor_of(stage)
    async with aclosing(conductor.run(ImageTask(id="a", spec=SPEC))) as events:
        await anext(event async for event in events if isinstance(event, SegmentDone))
        snapshot = conductor.snapshot("a")
    assert conductor.snapshot("a") is None
    task = ImageTask(id="a", spec=SPEC, resume=snapshot)
    assert await last_image(conductor.run(task)) == GeneratedImage(b"png 20", ((Stage.BASE, "p"),))
    assert len(stage.calls) == 1


async def test_under_another_profile_a_resumed_image_begins_at_the_first_step() -> None:
    resumed = await snapshot_before_failure(conductor_of(CountingStage(fault=fails_at(13))))

    def changed(call: int, sample: Sample[Any]) -> Exception | None:
        return ProfileChanged("another one") if call == 0 else None

    stage = CountingStage(fault=changed)
    task = ImageTask(id="a", spec=SPEC, resume=resumed)
    image = await last_image(conductor_of(stage).run(task))
    assert [index for index, _ in stage.calls] == [10, 0]
    assert image.png == b"png 20"


def fails_at(index: int) -> Fault:
    """Return a fault that ends an image at a step index."""
    return lambda call, sample: OutOfMemory("full") if sample.index == index else None


async def snapshot_before_failure(conductor: Conductor) -> ImageSnapshot:
    """Make an image until it fails; return its last snapshot."""
    newest: ImageSnapshot | None = None
    with suppress(OutOfMemory):
        async for _ in conductor.run(ImageTask(id="a", spec=SPEC)):
            newest = conductor.snapshot("a")
    assert newest is not None
    return newest


async def test_an_image_that_is_taken_from_a_slow_process_is_made_by_the_other_one_alone(
    replica: StageReplica,
) -> None:
    slow, taker = (conductor_of(LocalStage(replica, name)) for name in ("slow", "taker"))
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=150, guidance=5)
    whole = await last_image(taker.run(ImageTask(id="whole", spec=spec)))
    running = asyncio.create_task(last_image(slow.run(ImageTask(id="job-0", spec=spec))))
    await until_async(lambda: (at := slow.snapshot("job-0")) is not None and at.sample.index > 0)
    taken = await last_image(taker.run(ImageTask(id="job-0", spec=spec, is_retaken=True)))
    with pytest.raises(TakenOver):
        await running
    assert taken.png == whole.png


async def test_an_image_that_two_processes_send_to_one_replica_ends_for_the_first(
    replica: StageReplica,
) -> None:
    first, second = (conductor_of(LocalStage(replica, name)) for name in ("first", "second"))
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=150, guidance=5)
    running = asyncio.create_task(last_image(first.run(ImageTask(id="job-0", spec=spec))))
    await until_async(lambda: (at := first.snapshot("job-0")) is not None and at.sample.index > 0)
    await last_image(second.run(ImageTask(id="job-0", spec=spec)))
    with pytest.raises(TakenOver):
        await running


async def test_a_retaken_image_runs_alone_if_the_process_that_is_gone_suspected_it() -> None:
    dying = CountingStage(fault=dies_at((0, 13)))
    first = conductor_of(dying)
    async with aclosing(first.run(ImageTask(id="a", spec=SPEC))) as events:
        await anext(event async for event in events if len(dying.calls) == 2)
        spooled = first.snapshot("a")
    assert spooled is not None
    (_, sent) = dying.calls[1]
    assert (sent.alone, sent.suspicion) == (1, spooled.suspicion)
    parked = ImageSnapshot(spooled.sample, suspicion=sent.suspicion)
    for known in ({"resume": spooled}, {"is_retaken": True}):
        stage = CountingStage()
        stage.kept["a"] = parked
        await last_image(conductor_of(stage).run(ImageTask(id="a", spec=SPEC, **known)))
        ((index, segment),) = stage.calls
        assert (index > 0, segment.alone, segment.suspicion.deaths) == (True, 1, 1)


async def test_under_other_weights_of_the_same_name_an_image_begins_anew_and_gets_their_bytes(
    replica: StageReplica, tmp_path: Path
) -> None:
    other = perturbed(demo_folder(Stage.BASE), tmp_path / "base")
    changed = StageReplica(cpu_stage([ModelSource("demo", other)]))
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=40, guidance=5)
    try:
        first, second = (conductor_of(LocalStage(each, "s")) for each in (replica, changed))
        whole = await last_image(second.run(ImageTask(id="whole", spec=spec)))
        async with aclosing(first.run(ImageTask(id="job-0", spec=spec))) as events:
            await anext(event async for event in events if isinstance(event, Snapshot))
            halfway = first.snapshot("job-0")
        assert halfway is not None
        assert halfway.sample.index > 0
        image = await last_image(second.run(ImageTask(id="job-0", spec=spec, resume=halfway)))
        assert image.png == whole.png
    finally:
        changed.close()
