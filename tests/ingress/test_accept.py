"""The Accept header: one picture as PNG, JSON, or 406 before any work."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.ingress.accept import JSON, PNG, preferred
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.pictures import picture
from tests.support.routes import every_route

BODY: dict[str, Any] = {"prompt": "a"}
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("image/png;q=0.2, application/json;q=0.1", PNG),
        ("image/png;q=0.2, application/json;q=0.3", JSON),
        ("application/*, image/png", JSON),
        ("image/png, */*;q=0.5", PNG),
        ("text/html, image/webp, */*;q=0.8", JSON),
        ("*/*, application/json;q=0", PNG),
        ("application/json;charset=utf-8", JSON),
        ("image/png; profile=x ;q=1", PNG),
        ("no range, at all", JSON),
        ("image/png, garbage", PNG),
        ("application/json;q=2, image/png;q=0.1", PNG),
        ("application/json;q=nan, image/png;q=0.1", PNG),
        ("application/json;q=much, image/png;q=0.1", PNG),
        ("text/html", None),
        ("image/jpeg", None),
        ("text/event-stream", None),
        ("image/png;q=0, application/json;q=0.000", None),
        ("*/*;q=0", None),
    ],
)
def test_the_offer_of_the_highest_weight_is_chosen(accept: str, best: str | None) -> None:
    assert preferred(accept, (JSON, PNG)) == best


async def test_without_a_number_one_picture_is_made(
    client: Client, conductor: FakeConductor
) -> None:
    body = {"images": [picture(64, 64)], "prompt": "a"}
    for route, sent in (("/generate", BODY), ("/refine", body)):
        conductor.calls.clear()
        answer = await client().post(route, json=sent, headers={"Accept": PNG})
        assert (answer.status_code, answer.headers["content-type"]) == (201, PNG)
        assert len(conductor.calls) == 1
    answer = await client().post("/generate", json=BODY)
    assert len(answer.json()["images"]) == INFO.default_image_count == 2


@pytest.mark.parametrize(
    ("route", "body", "number"),
    [
        ("/generate", {"prompt": "a", "imageCount": 2}, 2),
        ("/generate", {"prompt": "a", "imageCount": 8}, 8),
        ("/refine", {"prompt": "a", "images": ["aGk="], "imageCount": 3}, 3),
        ("/refine", {"prompt": "a", "images": ["aGk=", "aGk="]}, 2),
        ("/refine", {"prompt": "a", "images": ["aGk=", "aGk="], "imageCount": 1}, 2),
    ],
)
async def test_several_pictures_are_not_acceptable_as_one(
    client: Client, conductor: FakeConductor, route: str, body: dict[str, Any], number: int
) -> None:
    answer = await client().post(route, json=body, headers={"Accept": PNG})
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "NOT_ACCEPTABLE")
    message = answer.json()["error"]["message"]
    assert message.endswith(f"image/png holds one image, and this request asks for {number}")
    assert not conductor.calls


async def test_who_takes_json_too_gets_several_pictures_as_json(client: Client) -> None:
    headers = {"Accept": "image/png, application/json;q=0.1"}
    answer = await client().post("/generate", json=BODY | {"imageCount": 3}, headers=headers)
    assert answer.status_code == 201
    assert len(answer.json()["images"]) == 3


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "text/event-streams", "*/*;q=0"])
@pytest.mark.parametrize(
    ("method", "route"), [r for r in every_route() if r[1].startswith(("/v1", "/g", "/r", "/j"))]
)
async def test_what_no_route_returns_is_not_acceptable(
    client: Client, conductor: FakeConductor, method: str, route: str, accept: str
) -> None:
    kind = "multipart/form-data; boundary=x" if route == EDITS else JSON
    headers = {"Accept": accept, "Content-Type": kind}
    answer = await client().request(method, route, json=BODY, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"].upper()) == (406, "NOT_ACCEPTABLE")
    assert ("text/event-stream" if route.endswith("/events") else JSON) in error["message"]
    assert not conductor.calls


async def test_openai_routes_return_json_whatever_the_format_of_the_pictures(
    client: Client,
) -> None:
    http = client()
    body = {"prompt": "a", "output_format": "webp"}
    for accept in ("application/json", "application/json, text/plain, */*", "*/*"):
        answer = await http.post(GENERATIONS, json=body, headers={"Accept": accept})
        assert answer.status_code == 200
    answer = await http.post(GENERATIONS, json=body, headers={"Accept": "image/webp"})
    assert answer.status_code == 406
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/health", "/livez"])
async def test_a_probe_is_answered_whatever_it_accepts(client: Client, path: str) -> None:
    assert (await client().get(path, headers={"Accept": "text/plain"})).status_code == 200


async def test_an_idempotency_key_stands_for_one_number_of_pictures(client: Client) -> None:
    http, key = client(), {"Idempotency-Key": "k"}
    first = await http.post("/generate", json=BODY, headers=key | {"Accept": PNG})
    again = await http.post("/generate", json=BODY, headers=key | {"Accept": PNG})
    assert (first.status_code, again.content) == (201, first.content)
    other = await http.post("/generate", json=BODY, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "IDEMPOTENCY_CONFLICT")


async def test_every_warning_is_a_header_of_its_own_and_safe_in_one(
    client: Client, conductor: FakeConductor
) -> None:
    conductor.warnings = ("cut: “fée” … 猫\r\nSet-Cookie: a=b", "a" * 5000)
    http = client(info=replace(INFO, warnings=("this is the demo",)))
    bare = await http.post("/generate", json=BODY, headers={"Accept": PNG})
    assert bare.headers.get_list("x-aura-warning")[:2] == [
        "this is the demo",
        "cut: ?fee? ... ? Set-Cookie: a=b",
    ]
    assert all(len(line) < 310 for line in bare.headers.get_list("x-aura-warning"))
    json_ = await http.post("/generate", json=BODY)
    assert json_.headers.get_list("x-aura-warning") == bare.headers.get_list("x-aura-warning")
    assert json_.json()["meta"]["warnings"] == ["this is the demo", *conductor.warnings]
    openai = await http.post(GENERATIONS, json=BODY)
    assert openai.headers.get_list("x-aura-warning") == bare.headers.get_list("x-aura-warning")
