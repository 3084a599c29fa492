"""The clients over handles that keep the contract of Ray's without Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import StageSegment, new_sample
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import LedgerAway, LedgerDamaged
from serve_app.core.service.events import Accepted, ReplicaStats, SegmentDone, Snapshot
from serve_app.core.service.info import LedgerHealth
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.deployments.clients import RemoteLedger, RemoteStage
from tests.support.builders import replica_stats
from tests.support.engine_runs import NOISE
from tests.support.ray_private import AcceptedResponse, DeploymentID
from tests.support.waiting import until_async

SPEC = ImageSpec(prompt="a", seed=1, width=64, height=64, steps=2, guidance=1)
SAMPLE: Any = new_sample("one", SPEC, make_schedule(NOISE, SPEC.sampler, 2, None, 1.0), Stage.BASE)
SEGMENT = StageSegment(Stage.BASE, 2, last=True)
EVENTS = [
    Snapshot(SAMPLE),
    Snapshot(SAMPLE),
    SegmentDone(SAMPLE, b"png", GpuTime(1.0), CostTable()),
]


class Handle(AcceptedResponse):
    """A deployment that streams the same events for every call, and counts cancellations."""

    def __init__(self) -> None:
        self.cancelled = 0

    def options(self, **_: Any) -> "Handle":
        return self

    def broadcast(self, method: str, *args: str) -> "Replicas":
        return Replicas()

    @property
    def advance(self) -> "Handle":
        return self

    def remote(self, *_: Any) -> "Handle":
        return self

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in EVENTS:
            yield event

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize(("received", "cancelled"), [(1, 1), (2, 1), (3, 1), (4, 0)])
async def test_a_stream_closed_before_its_end_is_cancelled_and_no_other(
    received: int, cancelled: int
) -> None:
    handle: Any = Handle()
    stage: Any = RemoteStage("base", handle)
    async with aclosing(stage.advance(SAMPLE, SEGMENT)) as events:
        for _ in range(received):
            await anext(events)
    assert handle.cancelled == cancelled


async def test_a_stream_names_the_replica_that_took_the_sample_first() -> None:
    handle: Any = Handle()
    stage: Any = RemoteStage("base", handle)
    events = [event async for event in stage.advance(SAMPLE, SEGMENT)]
    assert events == [Accepted("r1"), *EVENTS]


class LedgerHandle:
    """A deployment whose every method raises what the test sets, or never responds."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.calls = 0

    def __getattr__(self, _: str) -> "LedgerHandle":
        return self

    async def remote(self, *_: Any) -> LedgerHealth:
        self.calls += 1
        if self.error is None:
            return LedgerHealth()
        raise self.error


AWAY = DeploymentUnavailableError(DeploymentID("Ledger", "aura"))


@pytest.mark.parametrize("cause", [LedgerDamaged("the ledger's file is damaged"), ValueError()])
async def test_what_the_ledger_raises_is_passed_on_at_once(cause: Exception) -> None:
    handle: Any = LedgerHandle(RayTaskError("get", "stack", cause))
    with pytest.raises(LedgerAway) as error:
        await RemoteLedger(handle).get("job", 0)
    assert handle.calls == 1
    assert isinstance(error.value, type(cause)) == isinstance(cause, LedgerDamaged)


async def test_a_ledger_that_is_away_is_tried_until_it_is_back() -> None:
    handle: Any = LedgerHandle(AWAY)
    call = asyncio.create_task(RemoteLedger(handle).accepted_terms("a"))
    await until_async(lambda: handle.calls > 1)
    handle.error = None
    await call


async def test_a_ledger_that_stays_away_is_waited_for_once() -> None:
    handle: Any = LedgerHandle(AWAY)
    ledger = RemoteLedger(handle, restart_s=0.3)
    with pytest.raises(LedgerAway):
        await ledger.accepted_terms("a")
    assert handle.calls > 1
    before = handle.calls
    with pytest.raises(LedgerAway):
        await ledger.accepted_terms("a")
    assert handle.calls == before + 1
    handle.error = None
    await ledger.accepted_terms("a")  # it is back: the next time it may take its time again
    handle.error, before = AWAY, handle.calls
    with pytest.raises(LedgerAway):
        await ledger.accepted_terms("a")
    assert handle.calls > before + 1


async def test_the_ledger_s_health_is_known_without_waiting_for_it() -> None:
    handle: Any = LedgerHandle(AWAY)
    ledger = RemoteLedger(handle)
    assert (await ledger.health()).problem == "the ledger of jobs is restarting"
    assert (await ledger.health()).problem  # kept for a second
    assert handle.calls == 1
    silent: Any = SilentHandle()
    assert await RemoteLedger(silent).health() == LedgerHealth()


class SilentHandle(LedgerHandle):
    """A deployment that never responds."""

    def __init__(self) -> None:
        super().__init__(None)

    async def remote(self, *_: Any) -> LedgerHealth:
        return await asyncio.Event().wait() and LedgerHealth()


STATS = replica_stats()
SILENCE = object()
Answer = ReplicaStats | ImageSnapshot | Exception | None | object


class Result:
    """A replica's result: an answer, an error, or silence."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def get_async(self) -> Answer:
        if self.answer is SILENCE:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Replicas:
    """A deployment that calls all its replicas."""

    def __init__(self, *answers: Answer) -> None:
        self.results = [Result(answer) for answer in answers]
        self.calls: list[tuple[str, ...]] = []

    def options(self, **_: Any) -> "Replicas":
        return self

    def broadcast(self, method: str, *args: str) -> "Replicas":
        self.calls.append((method, *args))
        return self

    async def _fetch_replica_results_async(self) -> list[Result]:
        if not self.results:
            raise DeploymentUnavailableError(DeploymentID("Base", "aura"))
        return self.results


@pytest.mark.parametrize(
    ("answers", "count"),
    [
        ((), 0),
        ((STATS, STATS), 2),
        ((ActorDiedError(), STATS), 1),
        ((STATS, SILENCE), 1),  # its node is dead, and Ray has not noticed
        ((SILENCE, SILENCE), 0),
    ],
)
async def test_stats_are_those_of_the_replicas_that_respond_in_time(
    answers: tuple[Answer, ...], count: int
) -> None:
    handle: Any = Replicas(*answers)
    assert await RemoteStage("base", handle).stats() == [STATS] * count


async def test_a_replica_that_falls_silent_counts_as_it_was_for_a_while() -> None:
    first, second = replica_stats(pid=1), replica_stats(pid=2)
    handle: Any = Replicas(first, second)
    times = iter([0.0, 0.0, 60.0, 60.7, 62.0, 62.7, 67.0, 67.7])  # of each call, and of its end
    stage = RemoteStage("base", handle, clock=lambda: next(times))
    assert await stage.stats() == [first, second]
    handle.results[1].answer = SILENCE  # a minute later, for which nobody asked for the health
    assert await stage.stats() == [first, second]
    assert await stage.stats() == [first, second]
    assert await stage.stats() == [first]


async def test_a_replica_that_is_gone_counts_no_more() -> None:
    first, second = replica_stats(pid=1), replica_stats(pid=2)
    handle: Any = Replicas(first, second)
    times = iter([0.0, 0.0, 1.0, 1.0])
    stage = RemoteStage("base", handle, clock=lambda: next(times))
    await stage.stats()
    handle.results[1].answer = ActorDiedError()
    assert await stage.stats() == [first]


class LeasedReplicas(Replicas):
    """Replicas that take samples and never finish them, and that note what they are called for."""

    def __init__(self) -> None:
        super().__init__()
        self.segments: list[StageSegment] = []

    @property
    def advance(self) -> "LeasedReplicas":
        return self

    def remote(self, sample: Any, segment: StageSegment) -> Handle:
        self.segments.append(segment)
        return Handle()


async def test_leases_are_renewed_under_the_sender_of_the_samples_and_once_after_the_last() -> None:
    handle: Any = LeasedReplicas()
    stage: Any = RemoteStage("base", handle, renew_every_s=0.01)
    async with aclosing(stage.advance(SAMPLE, SEGMENT)) as events:
        await anext(events)
        await until_async(lambda: len(handle.calls) > 2)
    sender, calls = handle.segments[0].sender, len(handle.calls)
    assert set(handle.calls) == {("renew", sender)}
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    assert calls < len(handle.calls) <= calls + 2
    _ = [event async for event in stage.advance(SAMPLE, SEGMENT)]
    assert handle.segments[1].sender == sender


async def test_two_ingress_processes_have_two_senders() -> None:
    handle: Any = LeasedReplicas()
    for stage in (RemoteStage("base", handle), RemoteStage("base", handle)):
        _ = [event async for event in stage.advance(SAMPLE, SEGMENT)]
    first, second = (segment.sender for segment in handle.segments)
    assert first != second


async def test_snapshots_are_taken_of_whichever_replica_responds_and_has_some() -> None:
    kept = ImageSnapshot(SAMPLE)
    handle: Any = Replicas(kept, SILENCE, ActorDiedError(), None, kept)
    assert await RemoteStage("base", handle).take("a") == [kept, kept]
    ((method, id, taker),) = handle.calls
    assert (method, id, len(taker)) == ("take", "a", 32)


async def test_an_image_that_comes_during_the_last_renewal_is_renewed_too() -> None:
    handle: Any = LeasedReplicas()
    stage: Any = RemoteStage("base", handle, renew_every_s=0.1)
    _ = [event async for event in stage.advance(SAMPLE, SEGMENT)]
    await until_async(lambda: handle.calls)  # of the last round, which now pauses
    async with aclosing(stage.advance(SAMPLE, SEGMENT)) as events:
        await anext(events)
        calls = len(handle.calls)
        await until_async(lambda: len(handle.calls) >= calls + 3)


async def test_a_call_that_reaches_no_replica_makes_the_next_one_miss_nobody() -> None:
    first, second = replica_stats(pid=1), replica_stats(pid=2)
    handle: Any = Replicas(first, second)
    times = iter([0.0, 0.0, 10.0, 12.0, 12.7])
    stage = RemoteStage("base", handle, clock=lambda: next(times))
    assert await stage.stats() == [first, second]
    results, handle.results = handle.results, []
    assert await stage.stats() == []
    handle.results = results
    handle.results[1].answer = SILENCE
    assert await stage.stats() == [first, second]
