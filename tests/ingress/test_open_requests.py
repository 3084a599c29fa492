"""How many requests one caller may have open in an ingress process, beside others'."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from serve_app.ingress.access import by_caller, digests
from tests.support.api import POLICY, Client
from tests.support.job_requests import BODY
from tests.support.waiting import until_async

KEYED = replace(POLICY, keys=digests(["a-key", "b-key"]))
A, B = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key"))


class SlowBodies:
    """Requests of one caller whose bodies end when `rest` is set."""

    def __init__(self, process: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self._process = process
        self._headers = headers | {"Content-Type": "application/json"}
        self.rest = asyncio.Event()
        self.reading = 0

    async def _body(self) -> AsyncIterator[bytes]:
        text = json.dumps(BODY).encode()
        yield text[:5]
        self.reading += 1
        await self.rest.wait()
        yield text[5:]

    async def send(self, number: int) -> list[asyncio.Task[httpx.Response]]:
        """Send so many requests, and return when all of their bodies are being read."""
        sent = [
            asyncio.create_task(
                self._process.post("/generate", content=self._body(), headers=self._headers)
            )
            for _ in range(number)
        ]
        await until_async(lambda: self.reading == number)
        return sent


async def test_slow_bodies_of_one_caller_leave_room_for_another_s(client: Client) -> None:
    process = client(policy=KEYED, max_jobs=8)  # sixteen requests, of which four are kept free
    flood = SlowBodies(process, A)
    slow = await flood.send(12)
    refused = await process.post("/generate", json=BODY, headers=A)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "OVERLOADED")
    assert (await process.post("/generate", json=BODY, headers=B)).status_code == 201
    flood.rest.set()
    assert {(await request).status_code for request in slow} == {201}
    assert (await process.post("/generate", json=BODY, headers=A)).status_code == 201


@pytest.mark.parametrize(("weight", "places"), [(1.0, 2), (3.0, 3)])
async def test_the_places_that_are_kept_free_are_shared_by_weight(
    client: Client, weight: float, places: int
) -> None:
    weights = by_caller({"b-key": weight})
    process = client(policy=KEYED, max_jobs=8, caller_weights=weights)
    flood, other = SlowBodies(process, A), SlowBodies(process, B)
    slow = await flood.send(12) + await other.send(places)
    refused = await process.post("/generate", json=BODY, headers=B)
    assert refused.status_code == 503
    for bodies in (flood, other):
        bodies.rest.set()
    assert {(await request).status_code for request in slow} == {201}


async def test_who_has_no_key_takes_no_place(client: Client) -> None:
    process = client(policy=KEYED, max_jobs=1)
    for _ in range(3):
        assert (await process.post("/generate", json=BODY)).status_code == 401
    assert (await process.post("/generate", json=BODY, headers=A)).status_code == 201
