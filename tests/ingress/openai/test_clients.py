"""The requests of other people's clients of OpenAI's Images API, as they send them."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import Client
from tests.support.fake_conductor import INFO
from tests.support.openai_client import file, opened

KEYED = AccessPolicy(keys=digests(["a-key"]))
KEY = {"Authorization": "Bearer a-key"}


@pytest.fixture
def keyed(client: Client) -> httpx.AsyncClient:
    return client(policy=KEYED, headers=KEY)


def images_in(answer: httpx.Response) -> list[tuple[int, int]]:
    """Return the sizes of the images that an answer has in base64."""
    assert answer.status_code == 200, answer.text
    return [opened(item["b64_json"]).size for item in answer.json()["data"]]


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5"])
async def test_open_webui_generates(keyed: httpx.AsyncClient, model: str) -> None:
    body = {
        "model": model,
        "prompt": "a fox",
        "n": 2,
        "size": "1024x1024",
        "response_format": "b64_json",
    }
    headers = {"X-OpenWebUI-User-Name": "somebody", "X-OpenWebUI-User-Role": "user"}
    answer = await keyed.post("/v1/images/generations?api-version=", json=body, headers=headers)
    assert images_in(answer) == [(1024, 1024)] * 2


async def test_open_webui_edits_with_an_image_or_with_several(keyed: httpx.AsyncClient) -> None:
    form = {"model": "gpt-image-1", "prompt": "a wolf", "response_format": "b64_json"}
    upload = ("image.png", file(), "image/png")
    answer = await keyed.post("/v1/images/edits", data=form, files={"image": upload})
    assert images_in(answer) == [(512, 640)]
    many = [("image[]", upload), ("image[]", upload)]
    answer = await keyed.post("/v1/images/edits", data={**form, "n": "2"}, files=many)
    assert len(images_in(answer)) == 2


async def test_libre_chat_generates_and_edits(keyed: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "model": "gpt-image-1",
        "prompt": "a fox",
        "n": 1,
        "background": "auto",
        "output_format": "webp",
        "output_compression": 90,
        "quality": "auto",
        "size": "auto",
        "user": "64f0c0ffee",
    }
    answer = await keyed.post("/v1/images/generations", json=body)
    assert images_in(answer) == [(1024, 1024)]
    form = {"model": "gpt-image-1", "prompt": "a wolf", "n": "1", "quality": "auto", "size": "auto"}
    upload = [("image[]", ("image.png", file(), "image/png"))]
    answer = await keyed.post("/v1/images/edits", data=form, files=upload)
    assert images_in(answer) == [(512, 640)]


async def test_a_model_by_another_of_its_names_is_no_substitute(client: Client) -> None:
    known = replace(INFO.models[0], aliases=("owner/sdxl-base",))
    caller = client(info=replace(INFO, models=(known,)))
    body = {"model": "owner/sdxl-base", "prompt": "a fox"}
    answer = await caller.post("/v1/images/generations", json=body)
    assert answer.json()["warnings"] == []
