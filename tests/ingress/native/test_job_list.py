"""GET /jobs: the caller's own jobs, a page at a time."""

from typing import Any

import httpx
import pytest

from serve_app.core.errors import OutOfMemory
from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client
from tests.support.fake_conductor import FailingConductor, FakeConductor

KEYED = AccessPolicy(keys=digests(["one", "two"]))
FIRST, SECOND = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
BODY = {"prompt": "a fox", "imageCount": 1}


async def listed(caller: httpx.AsyncClient, headers: dict[str, str], **query: Any) -> Any:
    answer = await caller.get("/jobs", headers=headers, params=query)
    assert answer.status_code == 200
    return answer.json()


async def test_a_caller_sees_its_own_jobs_newest_first_a_page_at_a_time(client: Client) -> None:
    async with client(FakeConductor(), policy=KEYED) as caller:
        ids: list[str] = []
        for _ in range(3):
            made = await caller.post("/generate", json=BODY, headers=FIRST)
            ids.insert(0, made.json()["meta"]["jobId"])
        other = await caller.post("/generate", json=BODY, headers=SECOND)
        await client.drain()
        first = await listed(caller, FIRST, limit=2)
        assert [job["id"] for job in first["jobs"]] == ids[:2]
        last = await listed(caller, FIRST, limit=2, before=first["next"])
        assert [job["id"] for job in last["jobs"]] == ids[2:]
        assert last["next"] is None
        (job,) = (await listed(caller, SECOND))["jobs"]
        assert job == {
            "id": other.json()["meta"]["jobId"],
            "state": "succeeded",
            "createdAt": job["createdAt"],
            "error": None,
        }


async def test_jobs_are_filtered_by_state(client: Client) -> None:
    maker = FailingConductor(OutOfMemory("no room"), at=0)
    async with client(maker, policy=KEYED) as caller:
        await caller.post("/generate", json=BODY, headers=FIRST)
        await client.drain()
        (failed,) = (await listed(caller, FIRST, state="failed"))["jobs"]
        assert failed["error"]["code"] == "OUT_OF_MEMORY"
        assert (await listed(caller, FIRST, state="succeeded"))["jobs"] == []


async def test_without_keys_nobody_owns_jobs(client: Client) -> None:
    async with client() as caller:
        answer = await caller.get("/jobs")
    assert answer.status_code == 401
    assert "API_KEYS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", [{"state": "done"}, {"limit": 0}, {"limit": 101}, {"before": "x"}, {"before": "1.0-"}]
)
async def test_a_wrong_query_is_refused_by_name(client: Client, query: dict[str, Any]) -> None:
    async with client(policy=KEYED) as caller:
        answer = await caller.get("/jobs", headers=FIRST, params=query)
    assert answer.status_code == 400
    (name,) = query
    assert answer.json()["error"]["details"][0]["path"] == name
