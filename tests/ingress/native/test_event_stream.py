"""Jobs as server-sent events: from the request itself, and joined later from any process."""

import asyncio
import base64
import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OutOfMemory, Overloaded
from serve_app.core.service.events import Preview, Progress, Queued
from serve_app.core.service.job_errors import JobFailed, JobNotFound
from serve_app.core.service.jobs import OWNER_LOST, Job, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.app import build_api
from serve_app.ingress.job_runs import JobRuns
from serve_app.ingress.job_service import JobService
from serve_app.ingress.job_views import JobView, JobViews
from tests.support.api import make_api
from tests.support.asgi_stream import Exchange, SentEvent, exchange
from tests.support.fake_conductor import INFO, FakeConductor, ScriptedConductor
from tests.support.ledgers import WatchedLedger
from tests.support.waiting import until_async

BODY = {"prompt": "a fox", "imageCount": 1, "stream": True}


@pytest.fixture
def maker() -> ScriptedConductor:
    return ScriptedConductor()


@pytest.fixture
def api(maker: ScriptedConductor, ledger: WatchedLedger) -> ASGIApp:
    return make_api(maker, ledger)


def stream(api: ASGIApp, body: dict[str, Any] = BODY, **headers: str) -> Any:
    return exchange(api, "POST", "/generate", body, headers)


async def outlook(maker: ScriptedConductor, found: Outlook, event: Any, number: int = 0) -> None:
    """Let an image of the only job have an outlook, and an event that makes it known."""
    (job,) = {task.id.rpartition("-")[0] for tasks in maker.admitted for task in tasks}
    maker.outlooks[f"{job}-{number}"] = found
    maker.say(event, number)


async def test_a_stream_says_where_the_image_is_shows_previews_and_ends_with_its_meta(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        assert await answer.started() == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        await maker.begun.acquire()
        await outlook(maker, Outlook(Stage.BASE, 0, 4, 3, 1.25, 2.5), Queued())
        queued = await answer.next_event()
        job = queued.data["jobId"]
        assert queued == SentEvent(
            "queued",
            {
                "jobId": job,
                "image": 0,
                "stage": "base",
                "step": 0,
                "of": 4,
                "position": 3,
                "owedSeconds": 1.25,
                "etaMs": 2500,
            },
        )
        await outlook(maker, Outlook(Stage.BASE, 1, 4, 0, 0.0, 0.75), Progress(1))
        progress = await answer.next_event()
        assert progress.name == "progress"
        assert progress.data | {"step": 1, "position": 0, "etaMs": 750} == progress.data
        maker.say(Preview(1, b"jpeg"))
        assert await answer.next_event() == SentEvent(
            "preview", {"jobId": job, "image": 0, "jpeg": base64.b64encode(b"jpeg").decode()}
        )
        maker.say(None)
        image, done = await answer.events()
    assert (image.name, image.id, image.data["image"]) == ("image", "0", 0)
    assert done.id == "0"
    assert base64.b64decode(image.data["png"]).startswith(b"\x89PNG")
    assert done.name == "done"
    assert done.data["jobId"] == done.data["meta"]["jobId"] == job
    assert "images" not in done.data


async def test_each_image_is_sent_as_soon_as_it_is_done(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api, BODY | {"imageCount": 2}) as answer:
        for _ in range(2):
            await maker.begun.acquire()
        maker.say(None, 1)
        first = await answer.next_event()
        assert (first.name, first.data["image"], first.id) == ("image", 1, "1")
        maker.say(None, 0)
        second, done = await answer.events()
    assert (second.data["image"], second.id, done.name) == (0, "0,1", "done")


async def test_accept_asks_for_a_stream_too(api: ASGIApp, maker: ScriptedConductor) -> None:
    body = {"prompt": "a fox", "imageCount": 2}
    async with stream(api, body, accept="text/event-stream") as answer:
        assert await answer.started() == 200
        assert answer.headers["content-type"].startswith("text/event-stream")


async def test_the_images_of_a_stream_are_those_of_the_response(ledger: WatchedLedger) -> None:
    api = make_api(FakeConductor(), ledger)
    body = BODY | {"seed": 7, "imageCount": 2}
    async with stream(api, body) as answer:
        await answer.started()
        events = await answer.events()
    streamed = [event.data["png"] for event in events if event.name == "image"]
    async with exchange(api, "POST", "/generate", {**body, "stream": False}) as plain:
        assert await plain.started() == 201
        await until_async(lambda: plain.ended)
    assert json.loads(plain.body)["images"] == streamed


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": "", "stream": True}, 400, "VALIDATION_ERROR"),
        ({"prompt": "a", "stream": "yes"}, 400, "VALIDATION_ERROR"),
        ({"prompt": "a", "model": "none", "stream": True}, 404, "MODEL_NOT_FOUND"),
    ],
)
async def test_what_is_wrong_has_its_own_status(
    api: ASGIApp, body: dict[str, Any], status: int, code: str
) -> None:
    async with stream(api, body) as answer:
        assert await answer.started() == status
        await until_async(lambda: answer.ended)
    assert json.loads(answer.body)["error"]["code"] == code


async def test_a_job_that_is_not_admitted_has_its_own_status(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    maker.refusal = Overloaded("the queue is full", retry_after=7)
    async with stream(api) as answer:
        assert await answer.started() == 503
        await until_async(lambda: answer.ended)
    assert answer.headers["retry-after"] == "7"


async def test_an_error_after_the_start_is_the_last_event(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        await maker.begun.acquire()
        maker.say(OutOfMemory("no room"))
        (error,) = await answer.events()
    assert error.name == "error"
    assert error.data["error"]["code"] == "OUT_OF_MEMORY"
    assert error.data["error"]["requestId"] == answer.headers["x-request-id"]


async def test_closing_the_stream_cancels_the_job(
    api: ASGIApp, maker: ScriptedConductor, ledger: WatchedLedger
) -> None:
    async with stream(api) as answer:
        await answer.started()
        await maker.begun.acquire()
        assert set(maker.watched.values()) == {True}
    await until_async(lambda: maker.cancelled == 1 and maker.open_jobs == 0)


async def test_a_request_without_a_stream_asks_for_no_previews(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with exchange(api, "POST", "/generate", {**BODY, "stream": False}) as answer:
        await maker.begun.acquire()
        assert not maker.watched
        maker.say(None)
        assert await answer.started() == 201


async def test_a_stream_with_a_key_can_be_left_and_joined_by_the_same_request(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    key = {"idempotency-key": "one"}
    async with stream(api, BODY, **key) as first:
        await first.started()
        await maker.begun.acquire()
    assert maker.cancelled == 0
    async with stream(api, BODY, **key) as second:
        await second.started()
        maker.say(Preview(1, b"jpeg"))
        assert (await second.next_event()).name == "preview"
        maker.say(None)
        assert [event.name for event in await second.events()] == ["image", "done"]
    async with stream(api, {**BODY, "stream": False}, **key) as plain:  # the same images
        assert await plain.started() == 201
    assert len(maker.calls) == 1


async def job_of(answer: Exchange, maker: ScriptedConductor) -> str:
    """Return the id of a job that has just begun."""
    await answer.started()
    await maker.begun.acquire()
    (tasks,) = maker.admitted
    return tasks[0].id.rpartition("-")[0]


async def test_a_job_is_joined_at_its_present_state(api: ASGIApp, maker: ScriptedConductor) -> None:
    async with stream(api) as answer:
        job = await job_of(answer, maker)
        for step in range(3):
            await outlook(maker, Outlook(Stage.BASE, step, 4, 0, 0.0, 1.0), Progress(step))
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


class Processes:
    """Two ingress processes over one ledger, each of which can ask both for a job's events."""

    def __init__(self, maker: ScriptedConductor, ledger: WatchedLedger) -> None:
        async def view(id: str, cursor: Any, seconds: float) -> JobView | None:
            found = [jobs.views.view(id, cursor, seconds) for jobs in self.jobs]
            answers = await asyncio.gather(*found)
            return next((answer for answer in answers if answer is not None), None)

        self.jobs = [JobService(maker, ledger, INFO, view_everywhere=view) for _ in range(2)]
        self.apis = [
            build_api(jobs, maker, INFO, AccessPolicy(), version="1", proxy_sets_request_id=False)
            for jobs in self.jobs
        ]


async def test_a_job_of_one_process_is_watched_through_another(
    maker: ScriptedConductor, ledger: WatchedLedger
) -> None:
    own, other = Processes(maker, ledger).apis
    async with exchange(own, "POST", "/generate", {**BODY, "stream": False}) as answer:
        await maker.begun.acquire()
        (tasks,) = maker.admitted
        job = tasks[0].id.rpartition("-")[0]
        async with exchange(other, "GET", f"/jobs/{job}/events") as joined:
            assert await joined.started() == 200
            await until_async(lambda: maker.watched.get(f"{job}-0"))
            await outlook(maker, Outlook(Stage.BASE, 1, 4, 0, 0.0, 1.0), Progress(1))
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
