"""Schemathesis against the service's own description, over a maker that returns at once.

Every operation gets legal and illegal requests. No response may be an internal error or
undescribed, and every body must match the schema that the description gives for its status.
"""

import asyncio
import base64
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from starlette.datastructures import Headers
from starlette.types import ASGIApp

from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.openai.schemas import EDITS
from tests.support.api import make_api
from tests.support.fake_conductor import INFO, InstantConductor

KEY = {"Authorization": "Bearer a-key"}
POLICY = AccessPolicy(keys=digests(["a-key"]), hosts=("*",))
CALLER = POLICY.caller("POST", "/generate", Headers(KEY), None)
JOB = Job("known", CALLER, "owner", time.time())


def png(side: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "PNG")
    return file.getvalue()


def api() -> ASGIApp:
    """Return the API, with a job that is known."""
    ledger = Ledger(None)

    async def fill() -> None:
        await ledger.create(JOB, None)
        meta = (
            '{"model":"m","durationMs":1,"seeds":[1],"width":8,"height":8,"steps":1,'
            '"guidanceScale":1,"sampler":"euler","refined":false,"jobId":"known","warnings":[]}'
        )
        await ledger.finish(
            JOB.id, JOB.owner, JobState.SUCCEEDED, None, JobResult((b"png",), meta, JOB.created)
        )

    asyncio.run(fill())
    model = replace(INFO.default_model, native_size=64)
    return make_api(InstantConductor(), ledger, replace(INFO, models=(model,)), POLICY)


IMAGES = [base64.b64encode(png(side)).decode() for side in (16, 64, 100)]
SCHEMA: Any = schemathesis.openapi.from_asgi("/openapi.json", api(), headers=KEY)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
]
OPERATIONS: dict[str, Any] = {
    result.ok().label: result.ok() for result in SCHEMA.get_all_operations()
}
SIGNED = "GET /images/{job}/{number}.{format}"  # nobody can guess one: see `test_image_links`
# Forms and queries have no types: a number that became text, or an empty list, is legal.
# The web UI's API ignores what it does not know.
UNTYPED = {EDITS, "/jobs", "/sdapi/v1/progress"}
WITHOUT_INPUT = {"GET /health", "GET /livez", "GET /licenses"} | {  # one possible request
    label
    for label, operation in OPERATIONS.items()
    if "/sdapi/" in label and not (operation.body or operation.query)
}


@SCHEMA.hook  # type: ignore[untyped-decorator]  # schemathesis has no types here
def map_body(context: Any, body: Any) -> Any:
    """Make most legal texts meaningful: a known model, real images, one of two names.

    Otherwise next to no request would get as far as the job service.
    """
    if not isinstance(body, dict) or len(str(body)) % 4 == 0:
        return body
    if isinstance(body.get("model"), str):
        body["model"] = INFO.default_model.name
    if context.operation.path == "/refine":
        make_refinable(body)
    return body


def make_refinable(body: dict[str, Any]) -> None:
    """Leave one list of images and one prompt; what is wrong stays wrong and must be refused."""
    for name, other, is_legal in (
        ("baseImages", "images", is_list_of_texts),
        ("refinePrompt", "prompt", is_prompt),
    ):
        if is_legal(body.get(other)):
            given_value = body.pop(other)
            body[name] = given_value if body.get(name) is None else body[name]
        elif body.get(other) is None and body.get(name) is None:
            body[name] = IMAGES if name == "baseImages" else "warmer"
    texts = body.get("baseImages")
    if isinstance(texts, list) and is_list_of_texts(texts):
        body["baseImages"] = [IMAGES[len(text) % 3] for text in texts]
    config = body.get("config")
    if isinstance(config, dict) and isinstance(config.get("modelPath"), str):
        config["modelPath"] = INFO.default_model.name


def is_list_of_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 8
        and all(isinstance(text, str) for text in value)
    )


def is_prompt(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= INFO.max_prompt_chars


@SCHEMA.hook  # type: ignore[untyped-decorator]  # schemathesis has no types here
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Make every other job or model in a path a known one."""
    for name, known in (("id", JOB.id), ("name", INFO.default_model.name)):
        if path_parameters and len(str(path_parameters.get(name, "odd"))) % 2 == 0:
            path_parameters[name] = known
    return path_parameters


def call(case: Any) -> int:
    """Send one request, check its response against the description, and return its status."""
    untyped = [checks.negative_data_rejection] if case.operation.path in UNTYPED else []
    response = case.call_and_validate(checks=CHECKS, excluded_checks=untyped, headers=KEY)
    status: int = response.status_code
    assert status < 500
    return status


def fuzz(label: str, examples: int, *, derandomize: bool = False) -> Counter[bool]:
    """Send requests to an operation; return how many responses were a success, and how many not."""
    successes = Counter[bool]()

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    @given(one_of([OPERATIONS[label].as_strategy(generation_mode=mode) for mode in GenerationMode]))
    def send(case: Any) -> None:
        successes[call(case) < 300] += 1

    send()
    return successes


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_keeps_its_description(label: str) -> None:
    """Some requests must succeed, or what lies behind the validation was not tried."""
    responses = fuzz(label, 10 if label in WITHOUT_INPUT else 100, derandomize=True)
    print(label, dict(responses))
    least = 1 if label in WITHOUT_INPUT else 3
    assert responses[True] >= (0 if label == SIGNED else least)


def test_there_are_as_many_operations_as_routes() -> None:
    assert len(OPERATIONS) == 43


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_keeps_its_description_a_thousand_times(label: str) -> None:
    responses = fuzz(label, 1000)
    assert responses.total() >= (1 if label in WITHOUT_INPUT else 1000)
