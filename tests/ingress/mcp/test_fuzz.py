"""Each tool gets legal and illegal arguments, over a maker that returns at once."""

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.app import open_doors
from serve_app.ingress.mcp.definitions import TOOLS
from tests.support.api import make_api
from tests.support.demo_api import demo_info
from tests.support.fake_conductor import InstantConductor
from tests.support.fuzzed_api import base64_png
from tests.support.mcp_client import ACCEPT, MCP, error_of, job_of, messages_of, tool_call
from tests.support.mcp_client import call as call_tool

INFO = demo_info()
TOOL = {name: tool.described(name, INFO) for name, tool in TOOLS.items()}
PNG = base64_png(64)
WRONG = {"VALIDATION_ERROR", "NOT_FOUND", "MODEL_NOT_FOUND", "INVALID_IMAGE"}


def schema_of_tools() -> Any:
    """Return a description in which each tool is an operation with its arguments as body."""
    operations = {
        f"/{name}": {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": tool.input_schema}}},
                "responses": {"200": {"description": "The result"}},
            }
        }
        for name, tool in TOOL.items()
    }
    about = {"title": "tools", "version": "1"}
    return schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": about, "paths": operations})


SCHEMA = schema_of_tools()


async def send(http: httpx.AsyncClient, name: str, arguments: dict[str, Any]) -> str:
    """Call a tool; check the answer against its own schema, and return its error's code."""
    answer = await http.post(MCP, json=tool_call(name, arguments), headers=ACCEPT)
    assert answer.status_code == 200, answer.text
    result = messages_of(answer)[-1]["result"]
    if result["isError"]:
        assert "structuredContent" not in result
        code: str = error_of(result)["code"]
        assert code in WRONG, result
        return code
    schema = TOOL[name].output_schema
    assert ("structuredContent" in result) == (schema is not None)
    if schema is not None:
        Draft202012Validator(schema).validate(result["structuredContent"])
    return ""


def fuzz(name: str, examples: int, *, derandomize: bool = False) -> Counter[str]:
    """Call a tool many times; return and print how many calls ended with which code."""
    codes = Counter[str]()
    operation = SCHEMA[f"/{name}"]["POST"]
    api = make_api(InstantConductor(), Ledger(None), INFO, doors=open_doors(mcp=True))

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    def call(case: Any) -> None:
        arguments = case.body if isinstance(case.body, dict) else {}
        codes[runner.run(send(http, name, _meaningful(name, arguments, job)))] += 1

    began = time.perf_counter()
    with asyncio.Runner() as runner:
        transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
        http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        made = runner.run(call_tool(http, "generate", {"prompt": "a fox"}))
        job = job_of(made)["job_id"]
        call()
        runner.run(http.aclose())
    seconds, count = time.perf_counter() - began, codes.total()
    print(f"{name}: {count} cases in {seconds:.1f} s, {dict(codes)}")
    return codes


def _meaningful(name: str, arguments: dict[str, Any], job: str) -> dict[str, Any]:
    """Make most texts a real image or a job that is known, which they are next to never."""
    if len(str(arguments)) % 4 == 0:
        return arguments
    if name == "refine" and isinstance(arguments.get("image", ""), str):
        rest = {key: value for key, value in arguments.items() if key != "job_id"}
        return rest | {"image": PNG}
    return arguments | ({"job_id": job} if isinstance(arguments.get("job_id"), str) else {})


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_answers_all_arguments_with_a_result_or_what_is_wrong(name: str) -> None:
    codes = fuzz(name, 50, derandomize=True)
    assert codes["VALIDATION_ERROR"] >= 1
    assert codes[""] >= 3


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_answers_a_thousand_arguments(name: str) -> None:
    assert fuzz(name, 1000).total() >= (1000 if TOOL[name].input_schema["properties"] else 1)
