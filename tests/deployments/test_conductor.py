"""The image's journey, with stages that count steps instead of denoising."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.demand import Demand
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    DeadlineExceeded,
    Draining,
    EngineFault,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.scheduling.step_scheduler import BatchSize, WorkKind
from serve_app.core.service.info import HealthStatus, ModelInfo
from serve_app.deployments.conductor import Conductor
from tests.support.engine_runs import NOISE
from tests.support.stage_doubles import CountingStage, dies_at

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5, handoff=0.8)


def conductor(base: Any, refiner: Any = None, resting: tuple[Stage, ...] = ()) -> Conductor:
    return Conductor(base, refiner, [ModelInfo("demo", 64, NOISE)], scale_to_zero=resting)


async def test_an_image_walks_base_to_the_handoff_and_the_refiner_to_the_end() -> None:
    base, refiner = CountingStage(), CountingStage()
    png = (await conductor(base, refiner).generate("a", SPEC, None, None)).png
    assert png == b"png 20"
    assert base.calls == [(0, StageSegment(Stage.BASE, 16, last=False))]
    assert refiner.calls == [(16, StageSegment(Stage.REFINER, 20, last=True))]


class Noting(CountingStage):
    """Notes the samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[Sample[Any]] = []

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        self.samples.append(sample)
        async for event in super().advance(sample, leg):
            yield event


async def test_each_model_has_a_schedule_of_its_own_noise() -> None:
    stage, other = Noting(), replace(NOISE, timestep_spacing="trailing")
    models = [ModelInfo("demo", 64, NOISE), ModelInfo("other", 64, other)]
    working = Conductor(stage, None, models)
    for model in ("", "demo", "other"):
        await working.generate(model, replace(SPEC, model=model), None, None)
    assert [one.model for one in stage.samples] == ["demo", "demo", "other"]
    schedules = [one.schedule for one in stage.samples]
    assert schedules[0] == schedules[1] == make_schedule(NOISE, SPEC.sampler, 20, None, 0.8)
    assert schedules[2] == make_schedule(other, SPEC.sampler, 20, None, 0.8)
    with pytest.raises(ModelNotFound, match="there is demo, other"):
        await working.generate("none", replace(SPEC, model="none"), None, None)


async def test_what_either_stage_warns_of_comes_with_the_image_once() -> None:
    base = CountingStage(warnings=("cut", "weighed"), trouble=dies_at((0, 13)))
    refiner = CountingStage(warnings=("cut", "more"))
    made = await conductor(base, refiner).generate("a", SPEC, None, None)
    assert made.warnings == ("cut", "weighed", "more")
    assert (await conductor(CountingStage()).generate("a", SPEC, None, None)).warnings == ()


async def test_without_a_refiner_base_makes_the_whole_image() -> None:
    base = CountingStage()
    assert (await conductor(base).generate("a", SPEC, None, None)).png == b"png 20"
    assert base.calls == [(0, StageSegment(Stage.BASE, 20, last=True))]


async def test_a_lost_replica_costs_the_steps_since_the_last_snapshot() -> None:
    base = CountingStage(trouble=dies_at((0, 13)))
    assert (await conductor(base).generate("a", SPEC, None, None)).png == b"png 20"
    assert [index for index, _ in base.calls] == [0, 10]
    assert base.steps == 20 + 3


async def test_a_lost_refiner_does_not_send_the_image_back_to_base() -> None:
    base, refiner = CountingStage(), CountingStage(trouble=dies_at((0, 18)))
    assert (await conductor(base, refiner).generate("a", SPEC, None, None)).png == b"png 20"
    assert base.steps == 16
    assert [index for index, _ in refiner.calls] == [16, 16]


async def test_replicas_may_die_again_and_again_as_long_as_the_image_gets_on() -> None:
    base = CountingStage(trouble=dies_at((0, 7), (1, 12), (2, 17), (3, 19)))
    assert (await conductor(base).generate("a", SPEC, None, None)).png == b"png 20"


async def test_an_image_that_kills_every_replica_at_one_step_is_given_up() -> None:
    base = CountingStage(trouble=dies_at(*((call, 3) for call in range(9))))
    with pytest.raises(ReplicaLost):
        await conductor(base).generate("a", SPEC, None, None)
    assert len(base.calls) == 3


async def test_under_another_numeric_profile_the_image_starts_again_from_the_first_step() -> None:
    def changed(call: int, sample: Sample[Any]) -> Exception | None:
        if (call, sample.index) == (0, 12):
            return ReplicaLost("gone")
        return ProfileChanged("another card") if call == 1 else None

    base = CountingStage(trouble=changed)
    assert (await conductor(base).generate("a", SPEC, None, None)).png == b"png 20"
    assert [index for index, _ in base.calls] == [0, 10, 0]


async def test_a_profile_that_never_settles_is_told() -> None:
    base = CountingStage(trouble=lambda call, sample: ProfileChanged("again"))
    with pytest.raises(ReplicaLost, match="again and again"):
        await conductor(base).generate("a", SPEC, None, None)


async def test_other_errors_are_told_at_once() -> None:
    base = CountingStage(trouble=lambda call, sample: OutOfMemory("no room"))
    with pytest.raises(OutOfMemory):
        await conductor(base).generate("a", SPEC, None, None)
    assert len(base.calls) == 1


class Sleeping(CountingStage):
    """Takes the sample and never comes back."""

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        self.calls.append((sample.index, leg))
        try:
            await asyncio.sleep(60)
            yield None
        finally:
            self.closed += 1


async def test_an_image_that_is_late_is_cancelled_and_told() -> None:
    base = Sleeping()
    with pytest.raises(DeadlineExceeded, match=r"within 0 s"):
        await conductor(base).generate("a", SPEC, None, 0.05)
    assert base.closed == 1


async def test_cancelling_the_call_closes_the_stream_and_restores_the_books() -> None:
    base = Sleeping()
    one = conductor(base)
    task = asyncio.create_task(one.generate("a", SPEC, None, None))
    await asyncio.sleep(0.01)
    assert one.owed_seconds() > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert base.closed == 1
    assert one.owed_seconds() == 0


class Soon(CountingStage):
    """Makes its first image at once, and takes the others without ever coming back."""

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        if self.calls:
            await asyncio.sleep(60)
        async for event in super().advance(sample, leg):
            yield event


async def test_an_image_that_comes_too_late_is_refused_and_those_ahead_count_by_batches() -> None:
    step = TurnKind(WorkKind.STEP, Stage.BASE, "demo", 64, 64, 4)
    prompt = TurnKind(WorkKind.CONDITION, Stage.BASE, "demo", rows=2)
    known = {step: 1.0, replace(step, work=WorkKind.DECODE, rows=0): 0.0, prompt: 0.0}
    one = conductor(Soon(prices=CostTable(known, {"demo": BatchSize(2, 4)})))
    await one.generate("warm", SPEC, None, None)
    with pytest.raises(Overloaded, match=r"about 20 s, and 19 s"):
        await one.generate("a", SPEC, None, 19)
    shorter = replace(SPEC, steps=10)
    tasks = [asyncio.create_task(one.generate(str(n), shorter, None, 60)) for n in range(4)]
    await asyncio.sleep(0.01)
    assert one.owed_seconds() == 20  # two batches of ten steps
    with pytest.raises(Overloaded, match=r"about 40 s, and 39 s"):
        await one.generate("a", SPEC, None, 39)
    tasks.append(asyncio.create_task(one.generate("a", SPEC, None, 41)))
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


STEPS = {stage: TurnKind(WorkKind.STEP, stage, "demo", 64, 64, 4) for stage in Stage}
PROMPTS = [TurnKind(WorkKind.CONDITION, stage, "demo", rows=2) for stage in Stage]
FREE = dict.fromkeys([*PROMPTS, replace(STEPS[Stage.REFINER], work=WorkKind.DECODE, rows=0)], 0.0)
SECOND = CostTable({**dict.fromkeys(STEPS.values(), 1.0), **FREE}, {"demo": BatchSize(2, 4)})


class Held(CountingStage):
    """Holds images until they may go."""

    def __init__(self) -> None:
        super().__init__(prices=SECOND)
        self.go = asyncio.Event()

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        await self.go.wait()
        async for event in super().advance(sample, leg):
            yield event


async def test_demands_count_what_is_in_a_stage_or_still_to_come_and_all_that_ever_came() -> None:
    base, refiner = Held(), Held()
    base.ready = refiner.ready = 0
    one = conductor(base, refiner)
    assert await one.demands() == dict.fromkeys(Stage, Demand())
    first = asyncio.create_task(one.generate("first", SPEC, None, None))
    await asyncio.sleep(0.01)
    assert await one.demands() == dict.fromkeys(Stage, Demand(1))  # nobody knows yet what it takes
    base.go.set(), refiner.go.set()
    await first
    base.go.clear(), refiner.go.clear()
    assert await one.demands() == dict.fromkeys(Stage, Demand())  # so it was not counted either
    tasks = [asyncio.create_task(one.generate(id, SPEC, None, None)) for id in "abc"]
    tasks.append(asyncio.create_task(one.generate("d", replace(SPEC, handoff=0), None, None)))
    await asyncio.sleep(0.01)
    # of twenty steps base has 16, and two step together
    wanted = {Stage.BASE: Demand(3, 24, 0, 24), Stage.REFINER: Demand(4, 16, 6, 16)}
    assert await one.demands() == wanted
    base.go.set()
    await asyncio.sleep(0.01)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(4, 16, 0, 16)}
    assert await one.demands() == wanted
    refiner.go.set()
    await asyncio.gather(*tasks)
    wanted = {Stage.BASE: Demand(0, 0, 0, 24), Stage.REFINER: Demand(0, 0, 0, 16)}
    assert await one.demands() == wanted


async def test_a_conductor_that_is_new_asks_replicas_what_a_step_takes() -> None:
    base, refiner = Held(), Held()
    one = conductor(base, refiner)
    made = asyncio.create_task(one.generate("first", SPEC, None, None))
    await asyncio.sleep(0.01)
    assert await one.demands() == {Stage.BASE: Demand(1, 8), Stage.REFINER: Demand(1, 2, 2)}
    base.go.set(), refiner.go.set()
    await made


async def test_what_is_refused_was_never_wanted() -> None:
    one = conductor(CountingStage(prices=SECOND), CountingStage(prices=SECOND))
    await one.generate("warm", SPEC, None, None)
    with pytest.raises(Overloaded):
        await one.generate("a", SPEC, None, 1)
    assert await one.demands() == dict.fromkeys(Stage, Demand())


async def test_without_a_refiner_nothing_is_wanted_of_one() -> None:
    assert set(await conductor(CountingStage()).demands()) == {Stage.BASE}


async def test_patience_grows_with_the_models_that_may_have_to_be_loaded_first() -> None:
    async def patience(names: tuple[str, ...], *specs: ImageSpec) -> float:
        """Beside images under way, without what their own steps are predicted to take."""
        models = [ModelInfo(name, 64, NOISE) for name in names]
        one = Conductor(Sleeping(), Sleeping(), models)
        tasks = [
            asyncio.create_task(one.generate(str(number), spec, None, None))
            for number, spec in enumerate(specs)
        ]
        await asyncio.sleep(0.01)
        allowed = one.default_timeout() - 4 * one.owed_seconds()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return round(allowed, 6)

    fox, owl = replace(SPEC, model="fox"), replace(SPEC, model="owl")
    assert await patience(("fox",), fox, SPEC) == 60  # it is in memory before anybody is taken
    assert await patience(("fox", "owl"), fox) == 180  # it may have left for the other one
    assert await patience(("fox", "owl", "ink"), fox, owl, SPEC) == 300
    assert (
        await patience(("fox", "owl"), fox, replace(owl, handoff=0)) == 180
    )  # the refiner's alone


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Loading(CountingStage):
    """Takes a hundred seconds before the first step, on such a clock."""

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        loop.ahead += 100
        await asyncio.sleep(0.001)
        async for event in super().advance(sample, leg):
            yield event


def test_the_deadline_of_nobody_s_choosing_leaves_time_to_load_a_model() -> None:
    def make(*names: str) -> bytes:
        one = Conductor(Loading(), None, [ModelInfo(name, 64, NOISE) for name in names])
        with asyncio.Runner(loop_factory=Clock) as runner:
            return runner.run(one.generate("a", SPEC, None, None)).png

    assert make("fox", "owl") == b"png 20"
    with pytest.raises(DeadlineExceeded, match=r"within 6\d s"):
        make("fox")


class Unpowered(CountingStage):
    """Its first replica is lost in the middle, and every call takes fifty seconds on such a clock:
    the first to see that, the second for what is left to do."""

    def __init__(self) -> None:
        super().__init__(trouble=dies_at((0, 8)))

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        loop.ahead += 50
        await asyncio.sleep(0.001)
        async for event in super().advance(sample, leg):
            yield event


def test_who_sets_no_time_waits_for_a_replica_whose_loss_was_noticed_late() -> None:
    def make(timeout: float | None) -> bytes:
        one = conductor(Unpowered())
        with asyncio.Runner(loop_factory=Clock) as runner:
            return runner.run(one.generate("a", SPEC, None, timeout)).png

    assert make(None) == b"png 20"
    with pytest.raises(DeadlineExceeded, match="within 70 s"):
        make(70)


class Silent(CountingStage):
    """Ends without a result."""

    async def advance(self, sample: Sample[Any], leg: StageSegment) -> AsyncIterator[Any]:
        for _ in ():
            yield _


async def test_a_stage_that_ends_without_a_result_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="without a result"):
        await conductor(Silent()).generate("a", SPEC, None, None)


async def test_health_names_the_stage_that_is_not_ready() -> None:
    both = await conductor(CountingStage(ready=2), CountingStage()).health()
    assert both.status is HealthStatus.READY
    assert both.replicas == {"base": 2, "refiner": 1}
    assert both.owed_seconds == 4.5
    one = await conductor(CountingStage(), CountingStage(ready=0)).health()
    assert (one.status, one.reason) == (HealthStatus.LOADING, "no replica of refiner is ready yet")


async def test_a_stage_that_rests_is_no_reason_to_wait_and_none_to_refuse() -> None:
    refiner = CountingStage(ready=0)
    one = conductor(CountingStage(), refiner, resting=(Stage.REFINER,))
    health = await one.health()
    assert (health.status, health.reason) == (HealthStatus.READY, "")
    assert health.replicas == {"base": 1, "refiner": 0}
    for id in "ab":  # the second one with prices known
        assert (await one.generate(id, SPEC, None, 60)).png == b"png 20"
    away = await conductor(CountingStage(ready=0), refiner, resting=(Stage.REFINER,)).health()
    assert (away.status, away.reason) == (HealthStatus.LOADING, "no replica of base is ready yet")


async def test_patience_leaves_time_for_a_stage_that_rests_to_start() -> None:
    assert conductor(Sleeping(), Sleeping()).default_timeout() == 60
    assert conductor(Sleeping(), Sleeping(), resting=(Stage.REFINER,)).default_timeout() == 180


async def test_health_says_once_what_a_stage_s_devices_had_no_room_for() -> None:
    base = CountingStage(ready=3, shortfall="too little memory")
    health = await conductor(base, CountingStage()).health()
    assert health.shortfalls == ("base: too little memory",)


async def test_a_client_that_is_both_stages_is_counted_once_and_told_for_both() -> None:
    stage = CountingStage(ready=2, shortfall="too little memory")
    one = conductor(stage, stage)
    health = await one.health()
    assert health.replicas == {"base": 2, "refiner": 2}
    assert health.owed_seconds == 3.0
    assert health.shortfalls == ("base and refiner: too little memory",)
    assert (await one.generate("a", SPEC, None, None)).png == b"png 20"
    assert [leg.stage for _, leg in stage.calls] == [Stage.BASE, Stage.REFINER]
    gone = CountingStage(ready=0)
    assert (await conductor(gone, gone).health()).reason == (
        "no replica of base and refiner is ready yet"
    )


async def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    base = Sleeping()
    one = conductor(base)
    task = asyncio.create_task(one.generate("a", SPEC, None, None))
    await asyncio.sleep(0.01)
    drained = asyncio.create_task(one.drain())
    await asyncio.sleep(0.01)
    assert not drained.done()
    assert (await one.health()).status is HealthStatus.DRAINING
    with pytest.raises(Draining):
        await one.generate("b", SPEC, None, None)
    task.cancel()
    await asyncio.wait_for(drained, 1)


async def test_an_image_that_enters_after_the_handoff_never_meets_base() -> None:
    base, refiner = CountingStage(), CountingStage()
    late = replace(SPEC, strength=0.1)
    await conductor(base, refiner).generate("a", late, bytes(64 * 64 * 3), None)
    assert not base.calls
    assert refiner.calls[0][0] == 18
