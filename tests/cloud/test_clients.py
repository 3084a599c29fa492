"""What OpenAI's own client makes of a cloud's failures: which it raises, and what it buys again."""

from typing import Any

import openai
import pytest

from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.deployments.ledger import Ledger
from tests.support.api import make_api
from tests.support.cloud_caller import info_of
from tests.support.gemini_stand_in import GeminiStandIn, Reply, error_of, image_part, made, picture
from tests.support.http_server import serving_in_loop

BUSY = Reply(429, headers={"Retry-After": "999"})  # longer than the client waits
OUTAGE = error_of(503, "UNAVAILABLE")


async def failure_of(
    gemini: GeminiStandIn, retries: int, max_calls: int = 4, **request: Any
) -> openai.APIStatusError:
    """Return what the client raises; `retries` is how often it may send its request again."""
    cloud = GeminiMaker(gemini.options(max_calls=max_calls), InMemoryMeter())
    api = make_api(cloud, Ledger(None), info_of(is_default=True))
    async with serving_in_loop(api) as port:
        address = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(
            api_key="any", base_url=address, max_retries=retries
        ) as client:
            with pytest.raises(openai.APIStatusError) as failed:
                await client.images.generate(prompt="a harbour", **request)
        await cloud.close()
    return failed.value


@pytest.mark.parametrize(
    ("replies", "kind", "code"),
    [
        ([made(reason="IMAGE_SAFETY")], openai.UnprocessableEntityError, "safety_block"),
        ([made({"text": "no"})], openai.InternalServerError, "upstream_error"),
        ([OUTAGE] * 3, openai.InternalServerError, "upstream_error"),
        ([BUSY], openai.InternalServerError, "overloaded"),
        ([error_of(403, "PERMISSION_DENIED")], openai.InternalServerError, "model_unavailable"),
    ],
)
async def test_every_failure_is_an_error_of_the_clients_with_its_code(
    gemini: GeminiStandIn, replies: list[Reply], kind: type[openai.APIStatusError], code: str
) -> None:
    gemini.replies = list(replies)
    failure = await failure_of(gemini, retries=0)
    assert isinstance(failure, kind)
    assert failure.code == code
    assert failure.request_id


@pytest.mark.parametrize(
    "reply",
    [
        made({"text": "What a lovely idea"}),
        Reply(body=b"<html>"),
        Reply(body=b"{", lacks=9),
        error_of(504, "DEADLINE_EXCEEDED"),
        made(reason="IMAGE_SAFETY"),
    ],
    ids=["words", "unreadable", "broken", "late", "refused"],
)
async def test_a_call_that_brought_no_image_is_not_bought_again_by_the_client(
    gemini: GeminiStandIn, reply: Reply
) -> None:
    gemini.replies = [reply] * 3
    failure = await failure_of(gemini, retries=2)
    assert failure.status_code in (422, 502)
    assert len(gemini.calls) == 1


async def test_the_client_waits_for_no_cloud_that_wants_no_calls_for_long(
    gemini: GeminiStandIn,
) -> None:
    gemini.replies = [BUSY]
    failure = await failure_of(gemini, retries=2)
    assert failure.response.headers["retry-after"] == "999"
    assert len(gemini.calls) == 1


@pytest.mark.parametrize(
    "failure",
    [
        [OUTAGE] * 3,
        [Reply(429, headers={"Retry-After": "1"})],
        [error_of(403, "PERMISSION_DENIED")],
    ],
    ids=["outage", "busy", "refused"],
)
async def test_an_image_that_was_made_is_not_bought_again_because_of_its_sibling(
    gemini: GeminiStandIn, failure: list[Reply]
) -> None:
    gemini.replies = [made(image_part(picture())), *failure]
    refused = await failure_of(gemini, retries=2, max_calls=1, n=2)
    assert refused.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.response.headers
    assert len(gemini.calls) == 1 + len(failure)


async def test_an_image_that_waits_does_not_hide_the_call_that_was_cut_off(
    gemini: GeminiStandIn,
) -> None:
    gemini.may_answer.clear()
    more = {"timeoutSeconds": 1.0}
    late = await failure_of(gemini, retries=2, max_calls=1, n=3, extra_body=more)
    assert late.status_code == 504
    assert len(gemini.calls) == 1


async def test_an_outage_before_any_image_may_be_tried_again(gemini: GeminiStandIn) -> None:
    gemini.replies = [OUTAGE] * 3
    refused = await failure_of(gemini, retries=0, max_calls=1, n=2)
    assert refused.status_code == 502
    assert "x-should-retry" not in refused.response.headers
