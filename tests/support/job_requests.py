"""The request that the tests of jobs send, and who sends it."""

from dataclasses import replace

import httpx

from tests.support.api import POLICY

BODY = {"prompt": "a fox", "imageCount": 1}
KEY = {"Idempotency-Key": "key-1"}
ANONYMOUS = replace(POLICY, anonymous=True)
STRANGER = "10.0.0.9"


async def post(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    """Send `BODY` to /generate."""
    return await client.post("/generate", json=BODY, headers=headers)
