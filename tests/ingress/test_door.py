"""Doors: whose shape an error has, and how a domain field is called at each of them."""

from typing import Any

import pytest
from fastapi import APIRouter

from serve_app.core.errors import InvalidRequest
from serve_app.ingress.app import DOORS
from serve_app.ingress.door import Door, ErrorResponse, find_door
from serve_app.ingress.errors import error_response
from serve_app.ingress.native.door import NATIVE
from serve_app.ingress.openai.door import OPENAI
from serve_app.ingress.validation import field_error
from tests.support.api import Client


@pytest.mark.parametrize(
    ("path", "door"),
    [
        ("/generate", NATIVE),
        ("/jobs/some-id", NATIVE),
        ("/nothing", NATIVE),
        ("/v1", NATIVE),
        ("/v1/images/edits", OPENAI),
        ("/v1/models/some-name", OPENAI),
        ("/v1/nothing", OPENAI),
    ],
)
def test_a_path_belongs_to_the_door_whose_routes_have_it(path: str, door: Door) -> None:
    assert find_door(DOORS, path) is door


@pytest.mark.parametrize(
    ("door", "path"),
    [(NATIVE, "guidanceScale"), (OPENAI, "guidance_scale")],
    ids=["native", "openai"],
)
def test_a_field_of_the_domain_has_each_doors_own_name(door: Door, path: str) -> None:
    error = InvalidRequest("guidance", "must be between 0 and 20, got 30")
    response = error_response(error, 0, door.wire_names)
    assert response.message == f"{path} must be between 0 and 20, got 30"
    assert response.details == [(path, "must be between 0 and 20, got 30")]


async def test_an_illegal_spec_is_answered_with_the_doors_own_names(client: Client) -> None:
    """An LCM takes at most 50 steps, which the domain knows and no schema does."""
    native = await client().post("/generate", json={"prompt": "a", "steps": 51, "sampler": "lcm"})
    assert native.json()["error"]["details"][0]["path"] == "steps"


def test_a_third_door_needs_its_own_file_and_a_place_in_the_tuple() -> None:
    router = APIRouter(prefix="/third")

    @router.get("/ping")
    async def ping() -> str:
        return "pong"

    def error_body(error: ErrorResponse, request_id: str) -> dict[str, Any]:
        return {"detail": error.message}

    third = Door(router=router, error_body=error_body, field_error=field_error)
    doors = (*DOORS, third)
    assert find_door(doors, "/third/ping") is third
    assert find_door(doors, "/generate") is NATIVE
