"""A job as server-sent events, from the request itself."""

import base64
import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OutOfMemory, Overloaded
from serve_app.core.service.events import Preview, Progress, Queued
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.native.event_stream import MAX_PREVIEWS
from tests.support.api import make_api
from tests.support.asgi_stream import SentEvent, exchange
from tests.support.fake_conductor import FakeConductor, ScriptedConductor
from tests.support.ledgers import WatchedLedger
from tests.support.pictures import picture
from tests.support.waiting import until_async
from tests.support.watched_jobs import BODY, job_of, say_outlook, stream


async def test_a_stream_says_where_the_image_is_shows_previews_and_ends_with_its_meta(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        assert await answer.started() == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        await maker.begun.acquire()
        await say_outlook(maker, Outlook(Stage.BASE, 0, 4, 3, 1.25, 2.5), Queued())
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
        await say_outlook(maker, Outlook(Stage.BASE, 1, 4, 0, 0.0, 0.75), Progress(1))
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


async def test_a_stream_sends_a_bounded_number_of_previews_evenly_over_the_steps(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    """What its client has not read lies in Serve's proxy, and no stream knows how much that is."""
    steps, shown = 4 * MAX_PREVIEWS, list[str]()
    async with stream(api) as answer:
        await maker.begun.acquire()
        for step in range(steps):
            await say_outlook(maker, Outlook(Stage.BASE, step, steps, 0, 0.0, 1.0), Progress(step))
            while (event := await answer.next_event()).name == "preview":
                shown.append(event.data["jpeg"])
            assert event.data["step"] == step
            maker.say(Preview(step, b"%d" % step))
        maker.say(None)
        assert [event.name for event in await answer.events()] == ["image", "done"]
    assert [int(base64.b64decode(jpeg)) for jpeg in shown] == list(range(0, steps, 4))


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


async def test_a_stream_names_its_job_before_the_first_event(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    async with stream(api) as answer:
        job = await job_of(answer, maker)
        assert answer.headers["location"] == f"/jobs/{job}"
        assert not answer.body
        async with exchange(api, "DELETE", answer.headers["location"]) as deletion:
            assert await deletion.started() == 200
        await until_async(lambda: maker.cancelled == 1)


async def test_the_stream_of_a_refinement_names_its_job_too(
    api: ASGIApp, maker: ScriptedConductor
) -> None:
    body = {
        "refinePrompt": "warmer",
        "baseImages": [picture(512, 512)],
        "imageCount": 1,
        "stream": True,
    }
    async with exchange(api, "POST", "/refine", body) as answer:
        job = await job_of(answer, maker)
        assert answer.headers["location"] == f"/jobs/{job}"


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
