"""What the routes take is what the description says, where the web UI takes more than one type."""

from typing import Any

import jsonschema
import pytest

from serve_app.ingress.a1111.schemas import IMG2IMG, TXT2IMG
from serve_app.ingress.example_image import EXAMPLE_IMAGE
from tests.support.api import Client

Schema = dict[str, Any]
BODIES: dict[str, Schema] = {
    TXT2IMG: {"prompt": "a fox"},
    IMG2IMG: {"prompt": "a fox", "init_images": [EXAMPLE_IMAGE]},
}
ODD: list[Any] = [True, False, 0, 0.0, 1, 1.0, 0.5, -1, -1.5, 2**32, None, [], [1], {}]
ODD += ["1", "0.5", "-1", "", "yes", "a word"]


@pytest.mark.parametrize("path", BODIES)
async def test_every_value_that_is_taken_is_a_legal_one_by_the_description(
    client: Client, path: str
) -> None:
    caller = client()
    document = (await caller.get("/openapi.json")).json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rpartition("/")[2]
    legal = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )
    undescribed = []
    for field in document["components"]["schemas"][name]["properties"]:
        for value in ODD:
            sent = {**BODIES[path], field: value}
            answer = await caller.post(path, json=sent)
            assert answer.status_code in (200, 400, 404), answer.text
            if answer.status_code == 200 and not legal.is_valid(sent):
                undescribed.append((field, value))
    assert not undescribed


@pytest.mark.parametrize("name", ["steps", "cfg_scale", "batch_size", "seed", "width"])
async def test_a_number_is_no_boolean(client: Client, name: str) -> None:
    answer = await client().post(TXT2IMG, json={"prompt": "a fox", name: True})
    assert (answer.status_code, answer.json()["detail"]) == (400, f"{name} must be a number")
