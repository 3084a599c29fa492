"""Jobs that are joined later, from any process, as server-sent events."""

import pytest
from starlette.types import ASGIApp

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OutOfMemory
from serve_app.core.service.events import Progress
from serve_app.core.service.job_errors import JobFailed, JobNotFound
from serve_app.core.service.jobs import OWNER_LOST, Job, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.job_runs import JobRuns
from serve_app.ingress.job_service import JobService
from serve_app.ingress.job_views import JobViews
from tests.support.api import make_api
from tests.support.asgi_stream import exchange
from tests.support.fake_conductor import INFO, FakeConductor, ScriptedConductor
from tests.support.ingress_processes import IngressProcesses
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async
from tests.support.watched_jobs import BODY, job_of, say_outlook, stream


async def test_a_job_is_joined_at_its_present_state(api: ASGIApp, maker: ScriptedConductor) -> None:
    async with stream(api) as answer:
        job = await job_of(answer, maker)
        for step in range(3):
            await say_outlook(maker, Outlook(Stage.BASE, step, 4, 0, 0.0, 1.0), Progress(step))
        while (await answer.next_event()).data["step"] < 2:
            pass
        async with exchange(api, "GET", f"/jobs/{job}/events") as joined:
            assert await joined.started() == 200
            assert (await joined.next_event()).data["step"] == 2
            maker.say(None)
            assert [event.name for event in await joined.events()] == ["image", "done"]


async def test_who_leaves_a_joined_stream_changes_nothing_for_the_job(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        job = await job_of(answer, maker)
        async with exchange(api, "GET", f"/jobs/{job}/events") as joined:
            await joined.started()
        assert maker.cancelled == 0
        maker.say(None)
        assert [event.name for event in await answer.events()] == ["image", "done"]


@pytest.mark.parametrize(("last", "images"), [("", [0, 1]), ("1", [0]), ("0,1", []), ("x", [0, 1])])
async def test_a_client_that_comes_back_gets_the_images_that_it_lacks(
    api: ASGIApp, maker: ScriptedConductor, last: str, images: list[int]
) -> None:
    async with stream(api, BODY | {"imageCount": 2}) as answer:
        job = await job_of(answer, maker)
        await maker.begun.acquire()
        maker.say(None, 0)
        maker.say(None, 1)
        await answer.events()
    headers = {"last-event-id": last} if last else {}
    async with exchange(api, "GET", f"/jobs/{job}/events", headers=headers) as joined:
        *found, done = await joined.events()
    assert [event.data["image"] for event in found] == images
    assert done.name == "done"


async def test_a_job_that_failed_says_so_to_whoever_joins(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        job = await job_of(answer, maker)
        maker.say(OutOfMemory("no room"))
        await answer.events()
    async with exchange(api, "GET", f"/jobs/{job}/events") as joined:
        (error,) = await joined.events()
    assert error.data["error"]["code"] == "OUT_OF_MEMORY"


async def test_nobody_joins_a_job_of_another_caller(
    maker: ScriptedConductor, ledger: WatchedLedger
) -> None:
    api = make_api(maker, ledger, policy=AccessPolicy(keys=digests(["one", "two"])))
    async with stream(api, BODY, authorization="Bearer one") as answer:
        job = await job_of(answer, maker)
        for headers, status in (({"authorization": "Bearer two"}, 404), ({}, 401)):
            async with exchange(api, "GET", f"/jobs/{job}/events", headers=headers) as joined:
                assert await joined.started() == status


async def test_a_job_of_one_process_is_watched_through_another(
    maker: ScriptedConductor, ledger: WatchedLedger
) -> None:
    own, other = IngressProcesses(maker, ledger).apis
    async with exchange(own, "POST", "/generate", {**BODY, "stream": False}) as answer:
        await maker.begun.acquire()
        (tasks,) = maker.admitted
        job = tasks[0].id.rpartition("-")[0]
        async with exchange(other, "GET", f"/jobs/{job}/events") as joined:
            assert await joined.started() == 200
            await until_async(lambda: maker.watched.get(f"{job}-0"))
            await say_outlook(maker, Outlook(Stage.BASE, 1, 4, 0, 0.0, 1.0), Progress(1))
            assert (await joined.next_event()).data["step"] == 1
            maker.say(None)
            assert [event.name for event in await joined.events()] == ["image", "done"]
        assert await answer.started() == 201
    job_kept = await ledger.get(job, 0)
    assert job_kept is not None
    assert job_kept.state is JobState.SUCCEEDED


async def test_head_of_a_stream_ends_at_once_and_watches_nothing(
    maker: ScriptedConductor, ledger: WatchedLedger
) -> None:
    api = make_api(maker, ledger)
    async with exchange(api, "POST", "/generate", {**BODY, "stream": False}) as answer:
        await maker.begun.acquire()
        (tasks,) = maker.admitted
        path = f"/jobs/{tasks[0].id.rpartition('-')[0]}/events"
        async with exchange(api, "HEAD", path) as head:
            assert await head.started() == 200
            await until_async(lambda: head.ended)
        assert head.headers["content-type"].startswith("text/event-stream")
        assert not maker.watched
        maker.say(None)
        assert await answer.started() == 201


class LosingLedger(WatchedLedger):
    """Says of a job that its process is gone, or that there is none."""

    def __init__(self, *answers: Job | None) -> None:
        super().__init__()
        self._answers = list(answers)

    async def get(self, id: str, wait: float) -> Job | None:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


LOST = Job("a", "me", "gone", 0.0, JobState.FAILED, OWNER_LOST, is_abandoned=True)


async def test_whoever_watches_a_lost_job_hears_of_it_when_nobody_takes_it_over() -> None:
    ledger = LosingLedger(LOST)
    jobs = JobService(FakeConductor(), ledger, INFO)
    jobs.views = JobViews(JobRuns(FakeConductor(), ledger), ledger, takeover_s=0.0)
    with pytest.raises(JobFailed, match="send the request again"):
        [event async for event in jobs.watch("a", "me")]


async def test_whoever_watches_a_job_that_is_deleted_meanwhile_hears_that_there_is_none() -> None:
    jobs = JobService(FakeConductor(), LosingLedger(Job("a", "me", "other", 0.0), None), INFO)
    with pytest.raises(JobNotFound):
        [event async for event in jobs.watch("a", "me")]
