"""/openapi.json: what every field means, and examples that the demo answers."""

import base64
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.app import open_doors
from serve_app.ingress.native.examples import body_examples
from tests.support.api import Client, make_api
from tests.support.demo_api import demo_client, demo_info
from tests.support.fake_conductor import FakeConductor

Schema = dict[str, Any]
DEMO = demo_info()
DOCUMENT: Schema = (
    TestClient(
        make_api(FakeConductor(), Ledger(None), DEMO, doors=open_doors(mcp=True)),
        base_url="http://localhost",
    )
    .get("/openapi.json")
    .json()
)
SCHEMAS: dict[str, Schema] = DOCUMENT["components"]["schemas"]
OPERATIONS: dict[str, Schema] = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
BODIES = {
    label: content
    for label, operation in OPERATIONS.items()
    for content in operation.get("requestBody", {}).get("content", {}).values()
}
EDITS = "POST /v1/images/edits"
EXAMPLES = [(label, name) for label, content in BODIES.items() for name in content["examples"]]
HEART: str = body_examples(DEMO)["/refine"]["image"]["value"]["baseImages"][0]
TOGETHER = {"width": "height", "height": "width"}  # fields that are sent together
INSTEAD = {  # fields that are sent in place of another
    "images": "baseImages",
    "prompt": "refinePrompt",
    "terms": "termsDigest",
}
SOMETIMES = {
    *("data.b64_json", "data.url"),  # OpenAI's clients expect one of the two
    "error.data",  # of JSON-RPC, which demands none
}
# Files, LoRAs that the demo lacks, and addresses that only an operator has.
WITHOUT_EXAMPLE = {"images", "baseImages", "image", "init_images", "name", "webhook"}


def fields_of(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema, Schema]]:
    """Yield path, schema and parent of every field below a schema."""
    if reference := schema.get("$ref"):
        schema = SCHEMAS[reference.rpartition("/")[2]]
    for name, field in schema.get("properties", {}).items():
        yield f"{path}{name}", field, schema
        yield from fields_of(field, f"{path}{name}.")
    for inner in (*schema.get("anyOf", ()), *filter(None, [schema.get("items")])):
        yield from fields_of(inner, path)


REQUEST_FIELDS = {
    f"{label} {path}": (field, parent)
    for label, content in BODIES.items()
    for path, field, parent in fields_of(content["schema"])
}
RESPONSES = [
    content["schema"]
    for operation in OPERATIONS.values()
    for response in operation["responses"].values()
    for content in response.get("content", {}).values()
]


def legal(field: Schema) -> Schema:
    """Return what the schema of a field says beside null."""
    branches: list[Schema] = field.get("anyOf", [field])
    return next(branch for branch in branches if branch.get("type") != "null")


def test_the_walk_meets_the_fields_of_every_door() -> None:
    assert len(BODIES) == 10
    assert len(REQUEST_FIELDS) >= 60
    assert {"POST /generate handoff", "POST /refine config.steps", f"{EDITS} strength"} <= set(
        REQUEST_FIELDS
    )


@pytest.mark.parametrize("name", REQUEST_FIELDS)
def test_a_request_field_says_what_it_does_its_range_and_its_default(name: str) -> None:
    field, parent = REQUEST_FIELDS[name]
    text = field["description"]
    assert re.match(r"[A-Z`].{20,}\.$", text, re.DOTALL), text
    last, schema = name.rpartition(" ")[2].rpartition(".")[2], legal(field)
    if schema.get("type") in ("integer", "number"):
        assert "Range: " in text
    is_needed = last in parent.get("required", ()) or last in (*INSTEAD, *INSTEAD.values())
    assert is_needed or "Default: " in text
    if last not in WITHOUT_EXAMPLE:
        (example,) = field["examples"]
        assert "enum" not in schema or example in schema["enum"]


def test_every_operation_has_an_id_of_its_own_and_a_short_one() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert {"generate", "refine", "create_images", "txt2img", "get_job"} <= set(ids)


def test_generated_types_demand_no_field_that_has_a_default() -> None:
    """openapi-typescript demands each field whose own schema has `default`, and shows titles."""
    for name, (field, _) in REQUEST_FIELDS.items():
        assert not {"default", "title"} & field.keys(), name


def test_a_request_demands_what_has_no_default_alone() -> None:
    demanded = {label: set(fields_required(BODIES[label]["schema"])) for label in BODIES}
    assert demanded == {
        "POST /generate": {"prompt"},
        "POST /refine": set(),  # baseImages or images, refinePrompt or prompt
        "POST /licenses": {"accept"},
        "POST /v1/images/generations": {"prompt"},
        EDITS: {"image", "prompt"},
        "POST /sdapi/v1/txt2img": {"prompt"},
        "POST /sdapi/v1/img2img": {"init_images", "prompt"},
        "POST /sdapi/v1/options": set(),
        "POST /sdapi/v1/png-info": {"image"},
        "POST /mcp": {"jsonrpc", "method"},
    }


def fields_required(schema: Schema) -> list[str]:
    """Return the required fields of a body."""
    reference = schema.get("$ref", "").rpartition("/")[2]
    required: list[str] = SCHEMAS.get(reference, schema).get("required", [])
    return required


def test_every_response_field_is_described_and_always_present() -> None:
    met = set()
    for response in RESPONSES:
        for path, field, parent in fields_of(response):
            assert field.get("description", "").endswith("."), path
            assert "title" not in field
            last = path.rpartition(".")[2]
            assert last in parent["required"] or path in SOMETIMES
            met.add(path)
    assert {"meta.jobId", "error.requestId", "owedSeconds", "data.b64_json", "error.param"} <= met


def test_every_parameter_is_described() -> None:
    for label, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", ()):
            assert len(parameter["description"]) > 10, (label, parameter["name"])


def test_every_operation_is_headed_by_what_it_does() -> None:
    assert OPERATIONS["POST /generate"]["summary"] == "Make images from a prompt"
    assert all(" " in operation["summary"] for operation in OPERATIONS.values())


async def send(http: httpx.AsyncClient, label: str, value: Schema) -> httpx.Response:
    """Send a body as its route takes it; a form gets the example image."""
    _, path = label.split()
    if label != EDITS:
        return await http.post(path, json=value)
    file = base64.b64decode(HEART.partition(",")[2])
    fields = {name: (None, str(part)) for name, part in value.items()}
    return await http.post(path, files={"image": ("heart.png", file, "image/png"), **fields})


async def test_every_example_body_is_answered_by_the_demo() -> None:
    async with demo_client(mcp=True) as http:
        for label, name in EXAMPLES:
            answer = await send(http, label, BODIES[label]["examples"][name]["value"])
            expected = {"POST /licenses": 204, "POST /generate": 201, "POST /refine": 201}
            assert answer.status_code == expected.get(label, 200), (label, name, answer.text)
            assert "names nothing" not in answer.text, (label, name)


def example_of(name: str) -> Any:
    """Return the example of a request field."""
    (example,) = REQUEST_FIELDS[name][0]["examples"]
    return example


TRIED = [
    name
    for name, (field, _) in REQUEST_FIELDS.items()
    if "examples" in field and ".loras" not in name and " loras." not in name  # the demo has none
]


@pytest.mark.parametrize("name", TRIED)
async def test_the_example_of_every_field_is_answered(client: Client, name: str) -> None:
    label, _, path = name.rpartition(" ")
    parent, _, last = path.rpartition(".")
    value = {**next(iter(BODIES[label]["examples"].values()))["value"]}
    value.pop(INSTEAD.get(path, ""), None)
    sent = {last: example_of(name)}
    if last in TOGETHER:
        sent |= {TOGETHER[last]: example_of(f"{label} {TOGETHER[last]}")}
    value |= {parent: sent} if parent else sent
    answer = await send(client(info=DEMO, mcp=True), label, value)
    assert answer.is_success, answer.text


async def test_the_description_is_the_same_each_time_and_of_each_service(client: Client) -> None:
    first, other = client(info=DEMO, mcp=True), client()
    documents = [(await http.get("/openapi.json")).json() for http in (first, first, other)]
    assert documents[0] == documents[1] == DOCUMENT
    model = documents[2]["components"]["schemas"]["GenerateRequest"]["properties"]["model"]
    assert model["examples"] == ["sdxl-base-1.0"]
