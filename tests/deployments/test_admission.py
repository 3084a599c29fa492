"""Which jobs a conductor admits, and which images it gives up while they wait."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import AdmissionLimits, Refusal
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeadlineExceeded, DeadlineImpossible, Draining, Overloaded
from serve_app.core.scheduling.work import BatchSize, WorkKind
from serve_app.core.service.events import Progress, last_image
from serve_app.core.service.info import ModelInfo
from serve_app.core.service.metrics import (
    IMAGES,
    REQUESTS_ADMITTED,
    REQUESTS_REFUSED,
    ImageOutcome,
    InMemoryMeter,
)
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.stage_client import StageClient
from tests.support.conductors import SPEC, conductor_of, generate
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import BlockedStage, CountingStage, StageEvents

ADA = Caller("ada")
_BASE = ModelKey(Stage.BASE, "demo")
_OTHER = ModelKey(Stage.BASE, "other")
_STEP = TurnKind(WorkKind.STEP, _BASE, 64, 64, 4)
SECOND_BASE = CostTable(  # a second a step
    {
        _STEP: 1.0,
        TurnKind(WorkKind.CONDITION, _BASE, rows=2): 0.0,
        replace(_STEP, work=WorkKind.DECODE, rows=0): 0.0,
    },
    {_BASE: BatchSize(2, (4,))},
)


_LOAD = TurnKind(WorkKind.LOAD, _BASE)
TWO_MODELS = CostTable(  # of which the other one is loaded within a minute
    {**SECOND_BASE.seconds_by_turn, _LOAD: 5.0, replace(_LOAD, model=_OTHER): 60.0},
    {**SECOND_BASE.batch_sizes, _OTHER: BatchSize(2, (4,))},
)


async def busy(base: BlockedStage, refiner: StageClient | None = None) -> Conductor:
    """Return a conductor with four images of ten steps, each of a second, in batches of second."""
    conductor = conductor_of(base, refiner)
    await generate(conductor, "warm")
    shorter = replace(SPEC, steps=10)
    for number in range(4):
        task = ImageTask(id=str(number), spec=shorter)
        base.tasks.append(asyncio.create_task(last_image(conductor.run(task))))
    await base.has_calls(1 + 4)
    return conductor


async def limited(queue_seconds: float) -> Conductor:
    """Return a conductor whose stage makes two images in twenty seconds and has nothing to do."""
    base = BlockedStage(free=1, costs=SECOND_BASE)
    limits = AdmissionLimits(queue_seconds=queue_seconds)
    conductor = Conductor(base, None, [ModelInfo("demo", 64, NOISE)], limits=limits)
    await generate(conductor, "warm")
    return conductor


async def test_a_job_that_others_would_make_late_is_refused_whole() -> None:
    base = BlockedStage(free=1, costs=SECOND_BASE)
    conductor = await busy(base)
    assert conductor.owed_seconds() == 20  # two batches of ten steps
    tasks = [ImageTask(id=id, spec=SPEC, timeout_s=40) for id in "ab"]
    with pytest.raises(Overloaded, match=r"about 40 s, and 40 s") as refused:
        conductor.admit(tasks)
    assert refused.value.retry_after > 1
    assert conductor.owed_seconds() == 20
    with conductor.admit([replace(task, timeout_s=43) for task in tasks]):
        assert conductor.owed_seconds() == 40
    assert conductor.owed_seconds() == 20
    base.release.set()
    await asyncio.gather(*base.tasks)
    assert conductor.owed_seconds() == 0


async def test_an_image_of_an_admitted_job_is_owed_once_and_until_the_job_ends() -> None:
    base = BlockedStage(free=1, costs=SECOND_BASE)
    conductor = conductor_of(base)
    await generate(conductor, "warm")
    task = ImageTask(id="a", spec=SPEC)
    with conductor.admit([task]):
        running = asyncio.create_task(last_image(conductor.run(task)))
        await base.has_calls(2)
        assert conductor.owed_seconds() == 10
        base.release.set()
        assert (await running).png == b"png 20"
    assert conductor.owed_seconds() == 0


async def test_a_deadline_counts_from_the_arrival_of_the_request() -> None:
    conductor = conductor_of(CountingStage(costs=SECOND_BASE))
    await generate(conductor, "warm")
    now = asyncio.get_running_loop().time()
    late = ImageTask(id="a", spec=SPEC, timeout_s=60, arrived=now - 45)
    with pytest.raises(
        DeadlineExceeded, match=r"about 20\.0 s even alone, and 1[45]\.\d s are left"
    ):
        await last_image(conductor.run(late))
    with pytest.raises(DeadlineExceeded, match="within 60 s"):
        await last_image(conductor_of(BlockedStage()).run(replace(late, arrived=now - 59.95)))


async def test_an_image_that_waits_is_given_up_when_it_can_t_be_in_time_any_more() -> None:
    base = BlockedStage(free=1, costs=SECOND_BASE)
    conductor = conductor_of(base)
    await generate(conductor, "warm")
    with pytest.raises(DeadlineExceeded, match=r"still waits and can't be ready within 16 s"):
        await generate(conductor, timeout_s=16.05)  # four fifths of twenty seconds
    assert base.closed == 2


async def test_an_image_that_steps_is_not_given_up_before_its_deadline() -> None:
    class SteppingStage(BlockedStage):
        async def advance(self, sample: Sample[Any], segment: StageSegment) -> StageEvents:
            yield Progress(sample.index)
            async for event in super().advance(sample, segment):
                yield event

    base = SteppingStage(free=1, costs=SECOND_BASE)
    conductor = conductor_of(base)
    await generate(conductor, "warm")
    task = asyncio.create_task(generate(conductor, timeout_s=16.02))
    await base.has_calls(2)
    await asyncio.sleep(0.05)  # past the time at which it would be given up if it waited
    base.release.set()
    assert (await task).png == b"png 20"


async def test_refusals_are_counted_by_their_reason() -> None:
    meter = InMemoryMeter()
    infos = [ModelInfo("demo", 64, NOISE)]
    limits = AdmissionLimits(queue_seconds=0.5, open_requests=1)
    base = BlockedStage(free=1, costs=SECOND_BASE)
    conductor = Conductor(base, None, infos, meter, limits=limits)
    await generate(conductor, "warm")
    with pytest.raises(DeadlineExceeded):
        await generate(conductor, timeout_s=1)
    with conductor.admit([ImageTask(id="a", spec=SPEC)]), pytest.raises(Overloaded, match="open"):
        await generate(conductor, "b")
    assert meter.value(REQUESTS_ADMITTED) == 2
    assert meter.value(REQUESTS_REFUSED, reason=Refusal.IMPOSSIBLE) == 1
    assert meter.value(REQUESTS_REFUSED, reason=Refusal.OPEN_REQUESTS) == 1
    assert meter.value(IMAGES, outcome=ImageOutcome.REFUSED, model="demo") == 2


async def test_a_full_queue_refuses_whoever_comes_without_a_deadline() -> None:
    """Ada has three images of ten seconds each; Bea sends hers one by one."""
    conductor = await limited(queue_seconds=25)
    flood = [ImageTask(id=str(number), spec=SPEC, caller=Caller("ada")) for number in range(3)]
    bea = [replace(task, id=f"bea {task.id}", caller=Caller("bea")) for task in flood]
    for tasks in (flood, bea[:1], bea[1:2]):
        conductor.admit(tasks)
    with pytest.raises(Overloaded, match=r"queue is full: others' work takes about 30 s"):
        conductor.admit(bea[2:])


async def test_a_lone_caller_is_not_refused_because_of_its_own_work() -> None:
    conductor = await limited(queue_seconds=0.001)
    for number in range(8):
        conductor.admit([ImageTask(id=f"{number}-{image}", spec=SPEC) for image in range(2)])
    assert conductor.owed_seconds() == 8 * 20


async def test_what_another_ingress_has_admitted_counts() -> None:
    base = BlockedStage(free=1, costs=SECOND_BASE)
    first, second = await busy(base), conductor_of(CountingStage(costs=SECOND_BASE))
    await generate(second, "warm")
    second.update_others([first.load(), {"version": "of another release"}])
    assert second.owed_seconds() == 20
    with pytest.raises(Overloaded, match=r"about 40 s, and 40 s"):
        await generate(second, timeout_s=40)
    base.release.set()
    await asyncio.gather(*base.tasks)


async def test_a_model_that_must_be_loaded_first_takes_its_time() -> None:
    """An idle replica has one model in memory; a minute was measured for loading the other."""
    base = BlockedStage(free=2, costs=TWO_MODELS)
    conductor = conductor_of(base, models=("demo", "other"))
    await generate(conductor, "warm")
    base.models = (_BASE,)
    with conductor.admit([ImageTask(id="1", spec=SPEC, timeout_s=25)]):
        await base.has_stats()
    other = ImageTask(id="2", spec=replace(SPEC, model="other"), timeout_s=25)
    with pytest.raises(DeadlineExceeded, match=r"about 80 s, since .* loaded .* 25 s") as refused:
        conductor.admit([other])
    assert not refused.value.is_final  # once somebody else has it loaded, it may succeed
    with pytest.raises(DeadlineImpossible, match=r"even alone"):
        conductor.admit([replace(other, timeout_s=15)])
    patient = replace(other, timeout_s=85)
    with conductor.admit([patient]), conductor.admit([replace(other, id="3")]):
        pass  # while the model is being loaded, nobody knows how far that is
    with pytest.raises(DeadlineExceeded, match="loaded"):
        conductor.admit([replace(other, id="4")])
    base.models = (_BASE, _OTHER)
    await base.has_stats()
    conductor.admit([replace(other, id="4")])


async def test_a_job_s_own_calls_go_before_those_that_look_at_the_replicas() -> None:
    base = CountingStage()
    conductor = conductor_of(base)
    with conductor.admit([ImageTask(id="1", spec=SPEC)]):
        await asyncio.sleep(0)
        assert base.stats_calls == 1  # nothing was known of the replicas
    await base.has_stats()  # the look at them after the last job
    with conductor.admit([ImageTask(id="2", spec=SPEC)]):
        seen = base.stats_calls
        await asyncio.sleep(0)
        assert base.stats_calls == seen
        await base.has_stats()


async def test_a_job_whose_images_are_unknown_finds_out_that_there_is_no_room() -> None:
    base = BlockedStage(free=1, costs=SECOND_BASE)
    meter = InMemoryMeter()
    limits = AdmissionLimits(queue_seconds=15, open_requests=3)
    conductor = Conductor(base, None, [ModelInfo("demo", 64, NOISE)], meter, limits=limits)
    conductor.check_room(ADA, SPEC, deadline=0.0)  # nothing is known of costs
    await generate(conductor, "warm")
    loop = asyncio.get_running_loop()
    for number in range(2):
        conductor.check_room(ADA, SPEC, loop.time() + 25)
        conductor.admit([ImageTask(id=f"{number}-{n}", spec=SPEC, caller=ADA) for n in range(2)])
    conductor.check_room(ADA, SPEC, None)  # nothing of Ada's own counts
    conductor.check_room(ADA, SPEC, loop.time() - 1)  # it is late: `admit` says so
    conductor.admit([ImageTask(id="2", spec=SPEC, caller=ADA)])
    with pytest.raises(Overloaded, match="open"):
        conductor.check_room(Caller("bea"), SPEC, None)
    assert meter.value(REQUESTS_REFUSED, reason=Refusal.OPEN_REQUESTS) == 1
    waits = [conductor.send_away(Caller(name)) for name in ("cy", "dee", "eve")]
    assert waits == sorted(set(waits))  # each comes at a time of its own
    draining = asyncio.create_task(conductor.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        conductor.check_room(ADA, SPEC, None)
    draining.cancel()
