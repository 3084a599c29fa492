"""How far the caller's newest job is, as the web UI tells it."""

import asyncio
import base64
from typing import Any

import httpx

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import Preview
from serve_app.core.service.outlook import Outlook
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client
from tests.support.fake_conductor import ScriptedConductor
from tests.support.ingress_processes import IngressProcesses
from tests.support.waiting import first_match

PROGRESS, TXT2IMG = "/sdapi/v1/progress", "/sdapi/v1/txt2img"
KEYED = AccessPolicy(keys=digests(["first-key", "second-key"]))
FIRST, SECOND = ({"Authorization": f"Bearer {name}-key"} for name in ("first", "second"))
IDLE_STATE = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}
IDLE = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": IDLE_STATE,
    "current_image": None,
    "textinfo": None,
}


async def progress(caller: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = (await caller.get(PROGRESS, headers=headers)).json()
    return found


async def test_nothing_runs_before_the_first_job(client: Client) -> None:
    assert (await client().get(PROGRESS)).json() == IDLE


async def test_the_newest_job_of_the_caller_alone_is_shown_with_its_preview(
    client: Client,
) -> None:
    maker = ScriptedConductor()
    caller = client(maker, policy=KEYED)
    running = asyncio.create_task(caller.post(TXT2IMG, json={"prompt": "a"}, headers=FIRST))
    await maker.begun.acquire()
    (id,) = [task.id for tasks in maker.admitted for task in tasks]
    maker.outlooks[id] = Outlook(Stage.BASE, 6, 20, 0, 0.0, 2.5)
    maker.say(Preview(6, b"jpeg"))
    seen = await first_match(
        lambda: progress(caller, FIRST), lambda found: found["current_image"] is not None
    )
    assert (seen["progress"], seen["eta_relative"]) == (0.3, 2.5)
    assert base64.b64decode(seen["current_image"]) == b"jpeg"
    state = seen["state"]
    assert (state["job_count"], state["sampling_step"], state["sampling_steps"]) == (1, 6, 20)
    assert (state["job"], len(state["job_timestamp"])) == (id.rpartition("-")[0], 14)
    assert maker.watched[id]  # who polls is shown previews
    assert (await caller.get(PROGRESS, headers=SECOND)).json() == IDLE
    without = await caller.get(PROGRESS, params={"skip_current_image": "true"}, headers=FIRST)
    assert without.json()["current_image"] is None
    maker.say(None)
    assert (await running).status_code == 200
    await client.drain()
    assert (await caller.get(PROGRESS, headers=FIRST)).json() == IDLE


async def test_images_that_are_done_count_as_whole(client: Client) -> None:
    maker = ScriptedConductor()
    caller = client(maker)
    body = {"prompt": "a", "batch_size": 2}
    running = asyncio.create_task(caller.post(TXT2IMG, json=body))
    for _ in range(2):
        await maker.begun.acquire()
    (tasks,) = maker.admitted
    maker.say(None, 0)
    maker.outlooks[tasks[1].id] = Outlook(Stage.BASE, 5, 20, 0, 0.0, 2.0)
    maker.say(Preview(5, b"jpeg"), 1)
    seen = await first_match(
        lambda: progress(caller, {}), lambda found: found["state"]["job_no"] == 1
    )
    assert seen["progress"] == 0.625
    maker.say(None, 1)
    assert len((await running).json()["images"]) == 2


async def test_whoever_wants_no_preview_is_no_viewer(client: Client) -> None:
    maker = ScriptedConductor()
    caller = client(maker)
    running = asyncio.create_task(caller.post(TXT2IMG, json={"prompt": "a"}))
    await maker.begun.acquire()
    await caller.get(PROGRESS, params={"skip_current_image": "true"})
    assert maker.watched == {}
    maker.say(None)
    await running


async def test_one_caller_s_interrupt_leaves_another_s_job_alone(client: Client) -> None:
    maker = ScriptedConductor()
    caller = client(maker, policy=KEYED)
    running = asyncio.create_task(caller.post(TXT2IMG, json={"prompt": "a"}, headers=FIRST))
    await maker.begun.acquire()
    assert (await caller.post("/sdapi/v1/interrupt", headers=SECOND)).json() == {}
    assert maker.cancelled == 0
    await caller.post("/sdapi/v1/interrupt", headers=FIRST)
    assert (await running).status_code == 409
    assert maker.cancelled == 1


async def test_a_job_is_seen_and_interrupted_through_another_process() -> None:
    maker, ledger = ScriptedConductor(), Ledger(None)
    processes = IngressProcesses(maker, ledger)
    first, second = (
        httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://localhost")
        for api in processes.apis
    )
    async with first, second:
        running = asyncio.create_task(first.post(TXT2IMG, json={"prompt": "a"}))
        await maker.begun.acquire()
        (id,) = [task.id for tasks in maker.admitted for task in tasks]
        maker.outlooks[id] = Outlook(Stage.BASE, 6, 20, 0, 0.0, 2.5)
        maker.say(Preview(6, b"jpeg"))
        await first_match(
            lambda: progress(second, {}), lambda found: found["current_image"] is not None
        )
        assert (await second.post("/sdapi/v1/interrupt")).json() == {}
        assert (await running).status_code == 409
    await processes.drain()
