"""Schemathesis against the service's own description, on an engine that returns at once.

Every operation gets legal and illegal requests; no answer may be a fault, none undescribed, and
every body must match the schema that the description gives for its status.
"""

import asyncio
import base64
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from PIL import Image
from schemathesis.specs.openapi import checks
from starlette.datastructures import Headers

from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.openai.routes import EDITS
from tests.ingress.conftest import api_over
from tests.support.fake_conductor import INFO, InstantConductor

KEY = {"Authorization": "Bearer a-key"}
POLICY = AccessPolicy(keys=digests(["a-key"]), hosts=("*",))
CALLER = POLICY.caller("POST", "/generate", Headers(KEY), None)
JOB = Job("known", CALLER, "owner", time.time())


def png(side: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "PNG")
    return file.getvalue()


def served() -> Any:
    """The API, with a job that is known and terms that can be accepted."""
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
    return api_over(
        InstantConductor(),
        ledger,
        replace(INFO, models=(replace(INFO.default_model, native_size=64),)),
        POLICY,
    )


API = served()
IMAGES = [base64.b64encode(png(side)).decode() for side in (16, 64, 100)]
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", API, headers=KEY)
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


@SCHEMA.hook
def map_body(context: Any, body: Any) -> Any:
    """Legal texts mostly say something: a model there is, real images, one of two names. Else next
    to no request would get as far as the desk."""
    if not isinstance(body, dict) or len(str(body)) % 4 == 0:
        return body
    if isinstance(body.get("model"), str):
        body["model"] = INFO.default_model.name
    if context.operation.path == "/refine":
        refined(body)
    return body


def refined(body: dict[str, Any]) -> None:
    """One list of images and one prompt; what is wrong stays wrong, since it must be refused."""
    for name, other, legal in (
        ("baseImages", "images", is_list_of_texts),
        ("refinePrompt", "prompt", is_prompt),
    ):
        if legal(body.get(other)):
            given = body.pop(other)
            body[name] = given if body.get(name) is None else body[name]
        elif body.get(other) is None and body.get(name) is None:
            body[name] = IMAGES if name == "baseImages" else "warmer"
    texts = body.get("baseImages")
    if is_list_of_texts(texts):
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


@SCHEMA.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Every other job or model that is asked for is known."""
    for name, known in (("id", JOB.id), ("name", INFO.default_model.name)):
        if path_parameters and len(str(path_parameters.get(name, "odd"))) % 2 == 0:
            path_parameters[name] = known
    return path_parameters


TALLY: Counter[tuple[str, bool]] = Counter()  # answers by operation, and whether they were good


NOTHING_TAKEN = {"GET /health", "GET /livez", "GET /licenses"}


def fuzzed(examples: int, *, same: bool = False) -> Any:
    return settings(
        max_examples=examples,
        derandomize=same,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )


def ask(case: Any) -> httpx.Response:
    # a form has no types: a number that became text, or an empty field, is none the less legal
    untyped = [checks.negative_data_rejection] if case.operation.path == EDITS else []
    answer = case.call_and_validate(checks=CHECKS, excluded_checks=untyped, headers=KEY)
    assert answer.status_code < 500
    TALLY[case.operation.label, answer.status_code < 300] += 1
    return answer


@SCHEMA.parametrize()
@fuzzed(100, same=True)
def test_every_operation_keeps_its_description(case: Any) -> None:
    ask(case)


def test_every_operation_was_answered_well_too() -> None:
    """Else the requests were all refused at the door, and what lies behind it was not tried."""
    asked = {operation for operation, _ in TALLY}
    print({label: (TALLY[label, True], TALLY[label, False]) for label in sorted(asked)})
    assert len(asked) in (0, 12)
    for label in asked:
        assert TALLY[label, True] >= 3, label


@pytest.mark.long
@pytest.mark.timeout(1200)
@SCHEMA.parametrize()
@fuzzed(1000)
def test_every_operation_keeps_its_description_a_thousand_times(case: Any) -> None:
    ask(case)


@pytest.mark.long
def test_every_operation_that_takes_anything_was_asked_a_thousand_times() -> None:
    """Those that take nothing have a handful of different requests, and got them all."""
    asked = {label: TALLY[label, True] + TALLY[label, False] for label, _ in TALLY}
    print(asked)
    for label in asked:
        assert asked[label] >= (5 if label in NOTHING_TAKEN else 1000), label
