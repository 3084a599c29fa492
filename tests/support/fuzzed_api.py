"""Schemathesis against an API's own description: requests that are legal, and others that are not.

No response may be an internal error or undescribed, and every body must match the schema that the
description gives for its status.
"""

import base64
import time
from collections import Counter
from io import BytesIO
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from starlette.types import ASGIApp

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.openai.schemas import EDITS
from tests.support.mcp_client import ACCEPT, MCP

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
# Forms and queries have no types: a number that became text, or an empty list, is legal.
# The web UI's API ignores what it does not know.
UNTYPED = {EDITS, "/jobs", "/sdapi/v1/progress"}


def base64_png(side: int) -> str:
    """Return a square image in base64."""
    file = BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


_MCP_METHODS = ("initialize", "ping", "tools/list", "tools/call", "notifications/cancelled")
_IMAGES = [base64_png(side) for side in (16, 64, 100)]


class FuzzedApi:
    """An API to send requests to; `headers` are those of each, and `known_job` is a job's id."""

    def __init__(
        self, api: ASGIApp, info: ServiceInfo, headers: dict[str, str], known_job: str
    ) -> None:
        self._info = info
        self._headers = headers
        self._names = {"id": known_job, "name": info.default_model.name}
        schema: Any = schemathesis.openapi.from_asgi("/openapi.json", api, headers=headers)
        self._add_hooks(schema)
        self.operations: dict[str, Any] = {
            result.ok().label: result.ok() for result in schema.get_all_operations()
        }

    def fuzz(self, label: str, examples: int, *, derandomize: bool = False) -> Counter[int]:
        """Send requests to an operation; return and print how many responses had which status."""
        statuses = Counter[int]()
        operation = self.operations[label]

        @settings(
            max_examples=examples,
            derandomize=derandomize,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )
        @given(one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
        def send(case: Any) -> None:
            statuses[self._call(case)] += 1

        began = time.perf_counter()
        send()
        seconds, count = time.perf_counter() - began, statuses.total()
        print(f"{label}: {count} cases in {seconds:.1f} s, {dict(sorted(statuses.items()))}")
        return statuses

    def _call(self, case: Any) -> int:
        """Send one request, check its response against the description, and return its status."""
        path = case.operation.path
        untyped = [checks.negative_data_rejection] if path in UNTYPED else []
        headers = self._headers | (ACCEPT if path == MCP else {})
        response = case.call_and_validate(checks=CHECKS, excluded_checks=untyped, headers=headers)
        status: int = response.status_code
        assert status < 500
        return status

    def _add_hooks(self, schema: Any) -> None:
        """Let the schema change what it generates, by functions whose names are the hooks'."""

        def map_body(context: Any, body: Any) -> Any:
            """Make most legal texts meaningful: a known model, real images, one of two names.

            Otherwise next to no request would get as far as the job service.
            """
            if not isinstance(body, dict) or len(str(body)) % 4 == 0:
                return body
            if isinstance(body.get("model"), str):
                body["model"] = self._names["name"]
            if context.operation.path == "/refine":
                self._make_refinable(body)
            _use_real_images(body, "init_images")
            if context.operation.path == MCP and isinstance(body.get("method"), str):
                body["method"] = _MCP_METHODS[len(str(body)) % len(_MCP_METHODS)]
            return body

        def map_path_parameters(context: Any, path_parameters: Any) -> Any:
            """Make every other job or model in a path a known one."""
            for name, known in self._names.items():
                if path_parameters and len(str(path_parameters.get(name, "odd"))) % 2 == 0:
                    path_parameters[name] = known
            return path_parameters

        schema.hook(map_body)
        schema.hook(map_path_parameters)

    def _make_refinable(self, body: dict[str, Any]) -> None:
        """Leave one list of images and one prompt; what is wrong stays wrong, to be refused."""
        for name, other, is_legal in (
            ("baseImages", "images", _is_list_of_texts),
            ("refinePrompt", "prompt", self._is_prompt),
        ):
            if is_legal(body.get(other)):
                given_value = body.pop(other)
                body[name] = given_value if body.get(name) is None else body[name]
            elif body.get(other) is None and body.get(name) is None:
                body[name] = _IMAGES if name == "baseImages" else "warmer"
        _use_real_images(body, "baseImages")
        config = body.get("config")
        if isinstance(config, dict) and isinstance(config.get("modelPath"), str):
            config["modelPath"] = self._names["name"]

    def _is_prompt(self, value: Any) -> bool:
        return (
            isinstance(value, str)
            and bool(value.strip())
            and len(value) <= self._info.max_prompt_chars
        )


def _use_real_images(body: dict[str, Any], name: str) -> None:
    """Put real images in place of as many texts, which are next to never any."""
    texts = body.get(name)
    if isinstance(texts, list) and _is_list_of_texts(texts):
        body[name] = [_IMAGES[len(text) % 3] for text in texts]


def _is_list_of_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 8
        and all(isinstance(text, str) for text in value)
    )
