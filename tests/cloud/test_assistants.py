"""Assistants draw through a cloud's model too, and are told where their prompts go."""

from base64 import b64encode

from tests.support.cloud_service import cloud_service
from tests.support.gemini_stand_in import picture
from tests.support.mcp_client import ACCEPT, MCP, call, job_of, messages_of


async def test_a_tool_says_what_the_cloud_ignores_by_its_own_names() -> None:
    arguments = {
        "prompt": "a harbour in fog",
        "seed": 7,
        "steps": 12,
        "guidance_scale": 3,
        "negative_prompt": "rain",
        "sampler": "heun",
    }
    async with cloud_service(mcp=True) as service:
        result = await call(service.http, "generate", arguments)
    output = job_of(result)
    assert output["images"][0]["seed"] is None
    assert [block["type"] for block in result["content"]] == ["text", "image"]
    assert (
        "ignored, since gemini has no such setting: negative_prompt, seed, steps, guidance_scale, "
        "sampler" in output["warnings"]
    )


async def test_an_image_is_changed_by_the_cloud_at_no_strength() -> None:
    file = b64encode(picture(size=(512, 640))).decode()
    arguments = {"prompt": "at dawn", "image": file, "strength": 0.4}
    async with cloud_service(mcp=True) as service:
        result = await call(service.http, "refine", arguments)
        (made,) = service.gemini.calls
    warnings = job_of(result)["warnings"]
    assert "ignored, since gemini has no such setting: strength" in warnings
    assert "inlineData" in str(made.body) or "inline_data" in str(made.body)


async def test_an_assistant_can_know_before_it_calls_that_prompts_go_to_the_cloud() -> None:
    async with cloud_service(mcp=True) as service:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        answer = await service.http.post(MCP, json=message, headers=ACCEPT)
        listed = await call(service.http, "list_models", {})
        assert not service.gemini.calls
    tools = {tool["name"]: tool for tool in messages_of(answer)[-1]["result"]["tools"]}
    assert "Google's cloud" in tools["generate"]["description"]
    assert any("Google's cloud" in notice for notice in listed["structuredContent"]["notices"])
    (model, *_) = listed["structuredContent"]["models"]
    assert (model["name"], model["is_default"], model["steps"]) == ("gemini", True, None)
    assert "Google" in model["cloud"]
