"""Jobs that their callers don't wait for: submitted with `Prefer: respond-async`, and polled."""

from typing import Any

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import Overloaded
from serve_app.core.service.events import Progress
from serve_app.core.service.outlook import Outlook
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor, ScriptedConductor

BODY = {"prompt": "a fox", "imageCount": 1}


@pytest.mark.parametrize("prefer", ["respond-async", "wait=10, Respond-Async; foo=bar"])
async def test_a_submitted_job_is_accepted_and_made_without_its_caller(
    client: Client, prefer: str
) -> None:
    maker = ScriptedConductor()
    async with client(maker) as caller:
        answer = await caller.post("/generate", json=BODY, headers={"Prefer": prefer})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        job = answer.json()
        assert job["state"] == "running"
        assert answer.headers["location"] == f"/jobs/{job['id']}"
        await maker.begun.acquire()
        maker.say(None)
        await client.drain()
        done = (await caller.get(answer.headers["location"])).json()
    assert done["state"] == "succeeded"
    assert len(done["result"]["images"]) == 1
    assert done["progress"] is None
    assert not maker.watched


async def test_a_job_that_runs_tells_how_far_its_images_are(client: Client) -> None:
    maker = ScriptedConductor()
    async with client(maker) as caller:
        body = {**BODY, "imageCount": 2}
        answer = await caller.post("/generate", json=body, headers={"Prefer": "respond-async"})
        job = answer.json()["id"]
        for _ in range(2):
            await maker.begun.acquire()
        maker.outlooks[f"{job}-0"] = Outlook(Stage.REFINER, 17, 20, 0, 0.0, 0.25)
        maker.outlooks[f"{job}-1"] = Outlook(Stage.BASE, 0, 20, 2, 1.5, 4.0)
        for number in range(2):
            maker.say(Progress(0), number)
        progress: list[dict[str, Any]] = []
        while len(progress) < 2:
            progress = (await caller.get(f"/jobs/{job}")).json()["progress"]
        assert progress == [
            {
                "image": 0,
                "stage": "refiner",
                "step": 17,
                "of": 20,
                "position": 0,
                "owedSeconds": 0.0,
                "etaMs": 250,
            },
            {
                "image": 1,
                "stage": "base",
                "step": 0,
                "of": 20,
                "position": 2,
                "owedSeconds": 1.5,
                "etaMs": 4000,
            },
        ]
        await caller.delete(f"/jobs/{job}")


async def test_a_submitted_job_can_be_cancelled(client: Client) -> None:
    maker = ScriptedConductor()
    async with client(maker) as caller:
        answer = await caller.post("/generate", json=BODY, headers={"Prefer": "respond-async"})
        await maker.begun.acquire()
        cancelled = await caller.delete(answer.headers["location"])
        assert cancelled.json()["state"] == "cancelled"
    assert maker.cancelled == 1


async def test_what_is_refused_is_not_accepted(client: Client) -> None:
    maker = FakeConductor()
    maker.refusal = Overloaded("the queue is full", retry_after=3)
    async with client(maker) as caller:
        answer = await caller.post("/generate", json=BODY, headers={"Prefer": "respond-async"})
    assert answer.status_code == 503


async def test_a_key_makes_a_submitted_job_once(client: Client) -> None:
    maker = FakeConductor()
    headers = {"Prefer": "respond-async", "Idempotency-Key": "one"}
    async with client(maker) as caller:
        ids = [
            (await caller.post("/generate", json=BODY, headers=headers)).json()["id"]
            for _ in range(3)
        ]
        await client.drain()
    assert len(set(ids)) == 1
    assert len(maker.calls) == 1
