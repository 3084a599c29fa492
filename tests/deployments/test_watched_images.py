"""Images that somebody watches: what replicas are told of them, and how far they are."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import Accepted, ImageEvent, Progress, Queued
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from tests.support.conductors import SPEC, conductor_of
from tests.support.stage_doubles import BlockedStage, CountingStage, JumpingLoop, StageEvents
from tests.support.waiting import until_async

TASK = ImageTask(id="a", spec=SPEC)


class ScriptedStage(CountingStage):
    """A stage whose events a test tells; it goes on with None."""

    def __init__(self) -> None:
        super().__init__()
        self.script: asyncio.Queue[Accepted | Queued | Progress | None] = asyncio.Queue()

    async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
        self.calls.append((sample.index, segment))
        while (event := await self.script.get()) is not None:
            yield event
        async with aclosing(super().advance(sample, segment)) as events:
            async for later in events:
                yield later


def start(conductor: Conductor, *tasks: ImageTask) -> list[asyncio.Task[list[ImageEvent]]]:
    async def run(task: ImageTask) -> list[ImageEvent]:
        return [event async for event in conductor.run(task)]

    return [asyncio.create_task(run(task)) for task in tasks]


async def test_a_stage_knows_of_an_image_that_was_watched_before_it_got_it() -> None:
    base, refiner = ScriptedStage(), CountingStage()
    conductor = conductor_of(base, refiner)
    with conductor.admit([TASK]):
        conductor.watch("a", watched=True)
        (running,) = start(conductor, TASK)
        base.script.put_nowait(None)
        await running
    assert base.calls[0][1].watched
    assert refiner.calls[0][1].watched
    assert not base.watched  # nothing more was to be told


async def test_a_replica_that_has_the_image_hears_when_somebody_begins_or_ends_to_watch() -> None:
    base = ScriptedStage()
    conductor = conductor_of(base)
    (running,) = start(conductor, TASK)
    base.script.put_nowait(Accepted("r"))
    base.script.put_nowait(Queued())
    await until_async(lambda: base.script.empty())
    conductor.watch("a", watched=True)
    await until_async(lambda: base.watched.get("a") is True)
    conductor.watch("a", watched=False)
    await until_async(lambda: base.watched.get("a") is False)
    base.script.put_nowait(None)
    await running
    assert not base.calls[0][1].watched


async def test_a_replica_knows_as_soon_as_it_has_an_image_that_was_sent_before() -> None:
    base = ScriptedStage()
    conductor = conductor_of(base)
    (running,) = start(conductor, TASK)
    await base.has_calls(1)
    conductor.watch("a", watched=True)
    await asyncio.sleep(0)
    assert not base.watched
    base.script.put_nowait(Accepted("r"))
    await until_async(lambda: base.watched.get("a"))
    base.script.put_nowait(None)
    await running


async def test_nobody_hears_of_an_image_that_is_not_there() -> None:
    base = CountingStage()
    conductor = conductor_of(base)
    conductor.watch("a", watched=True)
    await asyncio.sleep(0)
    assert not base.watched
    assert conductor.outlook("a") is None


async def test_images_that_wait_have_places_in_the_order_in_which_they_are_due() -> None:
    base = BlockedStage()
    conductor = conductor_of(base)
    tasks = [ImageTask(id=id, spec=SPEC) for id in ("a", "b", "c")]
    running = start(conductor, *tasks)
    await base.has_calls(3)
    places = [outlook.position for id in "abc" if (outlook := conductor.outlook(id))]
    assert places == [1, 2, 3]
    base.release.set()
    await asyncio.gather(*running)


def in_jumping_loop(test: Callable[[JumpingLoop], Any]) -> None:
    """Run a test in an event loop whose clock it puts forward."""
    loop = JumpingLoop()
    try:
        loop.run_until_complete(test(loop))
    finally:
        loop.close()


async def _outlook(conductor: Conductor, step: int) -> Outlook:
    """Return the outlook of the image once it is known to be about to take a step."""

    def found() -> Outlook | None:
        outlook = conductor.outlook("a")
        return outlook if outlook and outlook.step == step and not outlook.position else None

    return await until_async(found)


@pytest.mark.parametrize("step_s", [0.5, 2.0])
def test_from_the_second_step_on_the_prediction_goes_by_the_steps_that_were_taken(
    step_s: float,
) -> None:
    async def test(loop: JumpingLoop) -> None:
        base = ScriptedStage()
        conductor = conductor_of(base)
        (running,) = start(conductor, TASK)
        base.script.put_nowait(Accepted("r"))
        await _outlook_known(conductor)
        for index in range(5):
            base.script.put_nowait(Progress(index))
            outlook = await _outlook(conductor, index)
            if index:
                assert outlook.eta == pytest.approx((20 - index) * step_s, rel=0.05)
            loop.offset += step_s
        later = conductor.outlook("a")
        assert later is not None
        assert later.eta == pytest.approx(15 * step_s, rel=0.05)  # a step has passed
        base.script.put_nowait(None)
        await running

    in_jumping_loop(test)


async def _outlook_known(conductor: Conductor) -> None:
    await until_async(lambda: conductor.outlook("a"))


async def test_an_image_shows_its_stage_its_steps_and_nothing_once_it_is_made() -> None:
    base, refiner = ScriptedStage(), ScriptedStage()
    conductor = conductor_of(base, refiner)
    (running,) = start(conductor, TASK)
    base.script.put_nowait(Progress(3))
    first = await _outlook(conductor, 3)
    assert (first.stage, first.step, first.of, first.position) == (Stage.BASE, 3, 20, 0)
    base.script.put_nowait(None)
    refiner.script.put_nowait(Progress(17))
    second = await _outlook(conductor, 17)
    assert second.stage is Stage.REFINER
    refiner.script.put_nowait(None)
    await running
    assert conductor.outlook("a") is None


async def test_an_image_that_waits_again_has_a_place_again() -> None:
    base = ScriptedStage()
    conductor = conductor_of(base)
    (running,) = start(conductor, TASK)
    base.script.put_nowait(Progress(3))
    await _outlook(conductor, 3)
    base.script.put_nowait(Queued())

    def waits() -> bool:
        outlook = conductor.outlook("a")
        return outlook is not None and outlook.position == 1

    await until_async(waits)
    base.script.put_nowait(None)
    await running
