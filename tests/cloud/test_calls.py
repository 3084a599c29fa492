"""Jobs of the cloud's model: cancelled, bounded, in turn, once for each key, and drained."""

import asyncio
from collections.abc import Callable

import pytest

from serve_app.cloud.call_slots import CallSlots
from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.core.caller import Caller as CallerName
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import Draining, Overloaded
from serve_app.core.service.events import Generated, Progress, Queued
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.service.metrics import CLOUD_CALLS, IMAGES, InMemoryMeter
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.maker_by_model import MakerByModel
from tests.support.cloud_caller import Caller
from tests.support.fake_conductor import FakeConductor
from tests.support.gemini_stand_in import GeminiStandIn
from tests.support.job_requests import KEY
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

BODY = {"prompt": "a harbour in fog", "imageCount": 1}
SPEC = ImageSpec(prompt="a", seed=1, width=1024, height=1024, steps=30, guidance=5, model="gemini")
ANN, BOB = CallerName("ann"), CallerName("bob")


def task_of(id: str, caller: CallerName = ANN) -> ImageTask:
    return ImageTask(id=id, spec=SPEC, caller=caller)


async def calls_reach(gemini: GeminiStandIn, count: int) -> None:
    await until_async(lambda: len(gemini.calls) >= count)


async def test_a_cancelled_job_closes_its_connection(
    caller: Caller, ledger: WatchedLedger, gemini: GeminiStandIn, meter: InMemoryMeter
) -> None:
    gemini.may_answer.clear()
    async with caller() as http:
        waiting = asyncio.create_task(http.post("/generate", json=BODY))
        await calls_reach(gemini, 1)
        (job,) = await until_async(lambda: ledger.created)
        assert (await http.delete(f"/jobs/{job.id}")).json()["state"] == "cancelled"
        answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CANCELLED")
    await until_async(lambda: gemini.hangups == 1)
    assert meter.times(IMAGES, outcome="cancelled", model="gemini") == 1
    assert not meter.times(CLOUD_CALLS, outcome="failed")


async def test_a_client_that_leaves_ends_the_call(caller: Caller, gemini: GeminiStandIn) -> None:
    gemini.may_answer.clear()
    async with caller() as http:
        waiting = asyncio.create_task(http.post("/generate", json=BODY))
        await calls_reach(gemini, 1)
        waiting.cancel()
        await until_async(lambda: gemini.hangups == 1)


async def test_no_more_calls_than_the_setting_allows_run_at_once(
    caller: Caller, ledger: WatchedLedger, gemini: GeminiStandIn
) -> None:
    gemini.may_answer.clear()
    async with caller(max_calls=2) as http:
        waiting = [
            asyncio.create_task(http.post("/generate", json={**BODY, "imageCount": 3}))
            for _ in range(2)
        ]
        await calls_reach(gemini, 2)
        await until_async(lambda: len(ledger.created) == 2)
        progress = [
            image
            for job in ledger.created
            for image in (await http.get(f"/jobs/{job.id}")).json()["progress"]
        ]
        gemini.may_answer.set()
        answers = [await answer for answer in waiting]
    assert {answer.status_code for answer in answers} == {201}
    assert len(gemini.calls) == 6
    assert gemini.most_running == 2
    assert sorted(image["position"] for image in progress) == [0, 0, 1, 2, 3, 4]


async def test_what_finds_no_room_is_refused_with_the_seconds_of_what_waits(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    gemini.may_answer.clear()
    async with caller(max_calls=1) as http:
        alone = asyncio.create_task(http.post("/generate", json={**BODY, "imageCount": 8}))
        await calls_reach(gemini, 1)
        refused = await http.post("/generate", json=BODY)
        gemini.may_answer.set()
        assert (await alone).status_code == 201
        admitted = await http.post("/generate", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "OVERLOADED")
    assert refused.headers["retry-after"] == "80"  # eight calls of ten seconds, as is assumed
    assert admitted.status_code == 201


async def test_a_job_larger_than_the_room_for_waiting_is_made_where_it_is_alone(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller(max_calls=1) as http:  # room for nine images
        answer = await http.post("/v1/images/generations", json={"prompt": "a harbour", "n": 10})
    assert answer.status_code == 200, answer.text
    assert len(gemini.calls) == 10


async def test_one_key_is_one_call_and_the_same_answer(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    async with caller() as http:
        first, second = await asyncio.gather(
            *(http.post("/generate", json=BODY, headers=KEY) for _ in range(2))
        )
        third = await http.post("/generate", json=BODY, headers=KEY)
        other = await http.post("/generate", json={**BODY, "model": "demo"}, headers=KEY)
    assert first.content == second.content == third.content
    assert first.status_code == 201
    assert len(gemini.calls) == 1
    assert other.status_code == 404


async def test_callers_take_turns_for_calls() -> None:
    slots, order, may_go = CallSlots(1), list[str](), asyncio.Event()

    async def call(caller: CallerName) -> None:
        async with slots.taken(caller):
            await may_go.wait()
            order.append(caller.name)

    tasks = [asyncio.create_task(call(ANN)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(call(BOB)) for _ in range(2)]
    await asyncio.sleep(0)
    may_go.set()
    await asyncio.gather(*tasks)
    assert order == ["ann", "ann", "bob", "ann", "bob", "ann"]


async def test_a_slot_is_lost_neither_by_those_who_leave_nor_by_those_just_served() -> None:
    slots = CallSlots(1)
    async with slots.taken(ANN):
        left = asyncio.create_task(slots.taken(BOB).__aenter__())
        served = asyncio.create_task(slots.taken(BOB).__aenter__())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
    served.cancel()  # its turn has come, and it does not know yet
    await asyncio.wait([served])
    async with asyncio.timeout(5), slots.taken(ANN):
        pass


@pytest.fixture
async def maker(gemini: GeminiStandIn, meter: InMemoryMeter) -> Callable[..., GeminiMaker]:
    return lambda **options: GeminiMaker(gemini.options(**options), meter)


async def test_an_image_streams_when_it_waits_when_it_is_called_and_when_it_is_made(
    maker: Callable[..., GeminiMaker],
) -> None:
    cloud = maker()
    events = [event async for event in cloud.run(task_of("a-0"))]
    assert [type(event) for event in events] == [Queued, Progress, Generated]
    assert cloud.outlook("a-0") is None
    assert cloud.owed_seconds() == 0
    await cloud.close()


async def test_a_maker_that_drains_takes_nothing_new_and_finishes_what_it_has(
    maker: Callable[..., GeminiMaker], gemini: GeminiStandIn
) -> None:
    cloud = maker()
    gemini.may_answer.clear()
    events = cloud.run(task_of("a-0"))
    assert isinstance(await anext(events), Queued)
    cloud.is_draining = True
    with pytest.raises(Draining):
        cloud.admit([task_of("b-0")])
    with pytest.raises(Draining):
        cloud.check_room(ANN, SPEC, None)
    gemini.may_answer.set()
    rest = [event async for event in events]
    assert isinstance(rest[-1], Generated)
    await cloud.close()


async def test_a_flood_of_one_caller_leaves_room_for_another(
    maker: Callable[..., GeminiMaker],
) -> None:
    cloud = maker(max_calls=4)  # room for 36 images, 27 of them anybody's
    for number in range(27):
        cloud.admit([task_of(f"a-{number}")])
    with pytest.raises(Overloaded, match="as many images wait for the cloud as may"):
        cloud.admit([task_of("a-27")])
    with cloud.admit([task_of("b-0", BOB)]):
        assert cloud.outlook("b-0")
    assert cloud.outlook("b-0") is None
    await cloud.close()


@pytest.mark.parametrize(
    ("status", "is_default", "expected"),
    [
        (HealthStatus.READY, True, HealthStatus.READY),
        (HealthStatus.LOADING, True, HealthStatus.DEGRADED),
        (HealthStatus.LOADING, False, HealthStatus.LOADING),
        (HealthStatus.DRAINING, True, HealthStatus.DRAINING),
    ],
)
async def test_the_service_is_ready_when_its_default_model_is(
    maker: Callable[..., GeminiMaker],
    status: HealthStatus,
    is_default: bool,
    expected: HealthStatus,
) -> None:
    local, cloud = FakeConductor(), maker()
    local.current_health = Health(status, "no replica is ready yet", {"base": 0}, 3.0)
    both = MakerByModel(local, cloud, "gemini", is_default=is_default)
    health = await both.health()
    assert (health.status, health.replicas, health.owed_seconds) == (expected, {"base": 0}, 3.0)
    assert both.send_away(ANN) == (1 if is_default else 13)
    assert both.load() == local.load()
    await cloud.close()
