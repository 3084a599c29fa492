"""The MCP door over bare HTTP: what it refuses before a tool is called, and its answers' shape."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.core.errors import Loading, Overloaded
from serve_app.core.service.metrics import HTTP_ERRORS, InMemoryMeter
from serve_app.ingress.access import digests
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.mcp.rerun import RERUN_FORMAT
from tests.support.api import ORIGIN, POLICY, Client
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.ledgers import AwayLedger
from tests.support.mcp_client import ACCEPT, MCP, call, error_of, job_of, messages_of, tool_call

KEYED = replace(POLICY, keys=digests(["a-key"]))
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
DRAW = tool_call("generate", {"prompt": "a fox"})


def refusal_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert (body["jsonrpc"], body["id"]) == ("2.0", None)
    error: dict[str, Any] = body["error"]
    return error


async def test_it_is_closed_unless_a_setting_opens_it(client: Client) -> None:
    answer = await client().post(MCP, json=LIST, headers=ACCEPT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert MCP not in (await client().get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize(
    ("options", "headers", "status", "code"),
    [
        ({"policy": KEYED}, {}, 401, "UNAUTHORIZED"),
        ({"policy": KEYED}, {"Authorization": "Bearer another"}, 401, "UNAUTHORIZED"),
        ({"policy": KEYED}, {"Authorization": "Basic dTphLWtleQ=="}, 401, "UNAUTHORIZED"),
        ({"peer": "203.0.113.7"}, {}, 401, "UNAUTHORIZED"),
        ({}, {"Host": "evil.example"}, 403, "FORBIDDEN_HOST"),
        ({}, {"Origin": "https://evil.example"}, 403, "FORBIDDEN_ORIGIN"),
        ({}, {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({}, {"Accept": "image/png"}, 406, "NOT_ACCEPTABLE"),
    ],
)
async def test_what_every_route_refuses_it_refuses_in_json_rpc(
    client: Client, options: dict[str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    sent = {"Content-Type": "application/json", **ACCEPT, **headers}
    caller = client(mcp=True, **options)
    answer = await caller.post(MCP, content=json.dumps(DRAW), headers=sent)
    assert answer.status_code == status
    assert refusal_of(answer)["data"]["code"] == code
    assert refusal_of(answer)["data"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_it_has_no_sessions(client: Client, method: str) -> None:
    answer = await client(mcp=True).request(method, MCP, headers=ACCEPT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert refusal_of(answer)["data"]["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("content", "code", "kind"),
    [
        (b'{"jsonrpc":', -32700, "INVALID_JSON"),
        (b'{"jsonrpc": "2.0", "method": "ping", "id": NaN}', -32700, "INVALID_JSON"),
        (b'{"method": "ping", "method": "ping"}', -32700, "INVALID_JSON"),
        (b"[" * 5000, -32700, "INVALID_JSON"),
        (b"[]", -32600, "VALIDATION_ERROR"),
        (b'{"jsonrpc": "1.0", "method": "ping", "id": 1}', -32600, "VALIDATION_ERROR"),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600, "VALIDATION_ERROR"),
        (b"", -32600, "VALIDATION_ERROR"),
    ],
)
async def test_a_body_that_is_no_message_is_400(
    client: Client, content: bytes, code: int, kind: str
) -> None:
    headers = {"Content-Type": "application/json", **ACCEPT}
    answer = await client(mcp=True).post(MCP, content=content, headers=headers)
    assert answer.status_code == 400
    assert (refusal_of(answer)["code"], refusal_of(answer)["data"]["code"]) == (code, kind)


async def test_a_message_over_the_limit_of_bodies_is_413(client: Client) -> None:
    large = tool_call("refine", {"prompt": "a fox", "image": "A" * 400})
    small = replace(POLICY, max_body_bytes=300)
    answer = await client(mcp=True, policy=small).post(MCP, json=large, headers=ACCEPT)
    assert answer.status_code == 413
    assert refusal_of(answer)["data"]["code"] == "PAYLOAD_TOO_LARGE"


async def test_a_notification_is_taken_without_an_answer(client: Client) -> None:
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    answer = await client(mcp=True).post(MCP, json=note, headers=ACCEPT)
    assert (answer.status_code, answer.content) == (202, b"")


async def test_a_client_of_the_handshake_gets_no_session(client: Client) -> None:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "a", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    answer = await client(mcp=True).post(MCP, json=message, headers=ACCEPT)
    (result,) = messages_of(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "mcp-session-id" not in answer.headers
    assert result["result"]["serverInfo"]["name"] == "aura-serve"
    assert result["result"]["protocolVersion"] == "2025-06-18"


async def test_a_page_of_an_allowed_origin_may_send_the_protocols_headers(client: Client) -> None:
    wanted = "authorization, content-type, mcp-protocol-version, mcp-method, mcp-name"
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    answer = await client(mcp=True).options(MCP, headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "a" * 501}, "prompt"),
        ({"prompt": "a", "negative_prompt": "a" * 501}, "negative_prompt"),
        ({"prompt": "a", "steps": 151}, "steps"),
        ({"prompt": "a", "guidance_scale": 21}, "guidance_scale"),
        ({"prompt": "a", "image_count": 9}, "image_count"),
        ({"prompt": "a", "width": 64}, "height"),
        ({"prompt": "a", "width": 65, "height": 64}, "width"),
        ({"prompt": "a", "aspect_ratio": "2:1"}, "aspect_ratio"),
        ({"prompt": "a", "sampler": "PLMS"}, "sampler"),
        ({"prompt": "a", "loras": {"ink": 9}}, "loras.ink"),
        ({"prompt": "a", "colour": "red"}, "colour"),
    ],
)
async def test_wrong_arguments_are_the_tools_error_with_their_name(
    client: Client, conductor: FakeConductor, arguments: dict[str, Any], path: str
) -> None:
    result = await call(client(mcp=True), "generate", arguments)
    error = error_of(result)
    assert (result["isError"], error["code"]) == (True, "VALIDATION_ERROR")
    assert error["details"][0]["path"] == path
    assert error["is_final"]
    assert not conductor.calls


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"job_id": "another", "image": "aGk="}, "VALIDATION_ERROR"),
        ({}, "VALIDATION_ERROR"),
        ({"job_id": "unknown"}, "NOT_FOUND"),
        ({"job_id": "../x"}, "NOT_FOUND"),
        ({"image": "aGk="}, "INVALID_IMAGE"),
        ({"image": "no base64!"}, "INVALID_IMAGE"),
    ],
)
async def test_refine_needs_an_image_of_a_job_or_a_file(
    client: Client, arguments: dict[str, Any], code: str
) -> None:
    result = await call(client(mcp=True), "refine", {"prompt": "a fox", **arguments})
    assert error_of(result)["code"] == code


async def test_refine_has_no_image_of_a_number_that_the_job_lacks(client: Client) -> None:
    caller = client(mcp=True)
    id = job_of(await call(caller, "generate", {"prompt": "a"}))["job_id"]
    arguments = {"prompt": "a fox", "job_id": id, "image_number": 1}
    error = error_of(await call(caller, "refine", arguments))
    assert (error["code"], error["details"][0]["path"]) == ("VALIDATION_ERROR", "image_number")


async def test_numbers_that_a_language_model_wrote_as_text_are_read(
    client: Client, conductor: FakeConductor
) -> None:
    result = await call(client(mcp=True), "generate", {"prompt": "a", "steps": "20", "seed": "7"})
    assert not result["isError"]
    assert [(spec.steps, spec.seed) for spec in conductor.specs] == [(20, 7)]


async def test_a_full_queue_says_when_to_try_again(client: Client) -> None:
    maker, meter = FakeConductor(), InMemoryMeter()
    maker.refusal = Overloaded("full", retry_after=7)
    result = await call(client(maker, mcp=True, meter=meter), "generate", {"prompt": "a"})
    error = error_of(result)
    assert (error["code"], error["status"], error["retry_after_seconds"]) == ("OVERLOADED", 503, 7)
    assert not error["is_final"]
    assert "Try again in 7 seconds" in result["content"][0]["text"]
    assert meter.value(HTTP_ERRORS, code="OVERLOADED", status="200") == 1


async def test_a_service_that_loads_is_no_reason_to_change_the_call(client: Client) -> None:
    maker = FakeConductor()
    maker.refusal = Loading("loading")
    error = error_of(await call(client(maker, mcp=True), "generate", {"prompt": "a"}))
    assert (error["code"], error["is_final"]) == ("LOADING", False)
    assert error["retry_after_seconds"] > 0


async def test_jobs_of_other_callers_are_none(client: Client) -> None:
    policy = replace(POLICY, keys=digests(["mine", "yours"]))
    mine = client(mcp=True, policy=policy, headers={"Authorization": "Bearer mine"})
    yours = client(mcp=True, policy=policy, headers={"Authorization": "Bearer yours"})
    id = job_of(await call(mine, "generate", {"prompt": "a"}))["job_id"]
    await client.drain()
    for tool in ("job_status", "cancel_job"):
        found = await call(mine, tool, {"job_id": id})
        assert job_of(found)["state"] == "succeeded"
        refused = await call(yours, tool, {"job_id": id})
        assert error_of(refused)["code"] == "NOT_FOUND"


async def test_without_the_ledger_images_come_without_links(client: Client) -> None:
    away: Any = AwayLedger()
    result = await call(client(mcp=True, ledger=away), "generate", {"prompt": "a"})
    (image,) = job_of(result)["images"]
    assert image["url"] is None
    assert [block["type"] for block in result["content"]] == ["text", "image"]
    assert "no link to the PNG" in job_of(result)["warnings"][-1]


async def test_terms_that_were_not_accepted_stand_with_the_models(client: Client) -> None:
    info = replace(INFO, terms_required=True)
    caller = client(mcp=True, info=info)
    listed = (await call(caller, "list_models", {}))["structuredContent"]
    assert any("terms are not accepted" in notice for notice in listed["notices"])
    drawn = await call(caller, "generate", {"prompt": "a"})
    assert error_of(drawn)["code"] == "TERMS_NOT_ACCEPTED"
    body = {"accept": True, "termsDigest": info.terms_digest}
    assert (await caller.post("/licenses", json=body)).status_code == 204
    assert not (await call(caller, "generate", {"prompt": "a"}))["isError"]


async def test_a_link_has_the_public_address(client: Client) -> None:
    caller = client(mcp=True, base_url="https://images.example/aura")
    result = await call(caller, "generate", {"prompt": "a"})
    (image,) = job_of(result)["images"]
    assert image["url"].startswith("https://images.example/aura/images/")


def test_the_spool_knows_its_jobs_whether_it_is_open_or_not() -> None:
    assert RERUN_FORMATS[MCP] is RERUN_FORMAT
