"""A prompt that names nothing the demo can draw: a warning in the body, or in a header."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from serve_app.config.catalog import find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.demo.vocabulary import demo_vocabulary
from tests.support.api import Client
from tests.support.fake_conductor import INFO
from tests.support.pictures import picture

MODEL = replace(INFO.default_model, name="demo", vocabulary=demo_vocabulary())
DEMO = replace(INFO, models=(MODEL,))
WARNING = (
    "the prompt names nothing that the model demo can draw: it knows only circles, squares, "
    "triangles, stars, crosses and hearts in ten colours, asked for in English or Spanish"
)


def test_the_demo_knows_its_own_words_and_no_other_model_has_any() -> None:
    info = service_info(Settings.read({}), find_checkpoints(Settings.read({})), "cpu")
    assert info.default_model.vocabulary == demo_vocabulary()
    assert INFO.default_model.vocabulary is None


@pytest.mark.parametrize(
    ("prompt", "warns"),
    [("a cat", True), ("a [cat|dog]", True), ("a red heart", False), ("a [cat:heart:0.5]", False)],
)
async def test_it_is_in_the_body_or_in_a_header_on_every_route(
    client: Client, prompt: str, warns: bool
) -> None:
    http, expected = client(info=DEMO), [WARNING] if warns else []
    for route, body in (
        ("/generate", {"prompt": prompt}),
        ("/refine", {"prompt": prompt, "images": [picture(64, 64)]}),
    ):
        answer = await http.post(route, json=body)
        assert answer.json()["meta"]["warnings"] == expected
        bare = await http.post(route, json=body, headers={"Accept": "image/png"})
        assert bare.headers.get_list("x-aura-warning") == expected
    made = await http.post("/v1/images/generations", json={"prompt": prompt})
    form: Any = {"image": ("a.png", base64.b64decode(picture(64, 64))), "prompt": (None, prompt)}
    edited = await http.post("/v1/images/edits", files=form)
    for answer in (made, edited):
        assert answer.json()["warnings"] == expected


async def test_another_model_takes_any_prompt(client: Client) -> None:
    answer = await client().post("/generate", json={"prompt": "a cat"})
    assert answer.json()["meta"]["warnings"] == []
