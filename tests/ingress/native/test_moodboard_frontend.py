"""The requests of the moodboard frontend, as each of its two branches sends them from a browser."""

from base64 import b64decode
from typing import Any

import httpx
import pytest

from tests.support.api import ORIGIN, Client
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.pictures import size_of

PNG = b"\x89PNG\r\n\x1a\n"
CONFIG = {"steps": 30, "guidanceScale": 7.5}


@pytest.fixture
def frontend(client: Client) -> httpx.AsyncClient:
    return client(headers={"Origin": ORIGIN})


async def images_of(frontend: httpx.AsyncClient, route: str, body: dict[str, Any]) -> list[str]:
    """Return what the frontend takes from an answer: the images alone."""
    preflight = await frontend.options(
        route,
        headers={
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert preflight.status_code == 200
    answer = await frontend.post(route, json=body)
    assert answer.is_success, answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    images: list[str] = answer.json()["images"]
    assert all(b64decode(image, validate=True).startswith(PNG) for image in images)
    return images


async def test_the_main_branch_generates_and_refines(
    frontend: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    body = {"prompt": "fog over a harbour", "aspectRatio": "16:9", "temperature": 0.8}
    images = await images_of(frontend, "/generate", body)
    assert [size_of(image) for image in images] == [(1344, 768)] * 2
    again = {"refinePrompt": "warmer contrast", "images": images, "config": CONFIG}
    refined = await images_of(frontend, "/refine", again)
    assert [size_of(image) for image in refined] == [(1344, 768)] * 2
    spec = conductor.specs[-1]
    assert (spec.steps, spec.guidance) == (30, 7.5)
    assert spec.prompt == "fog over a harbour, warmer contrast"


@pytest.mark.parametrize(("resolution", "size"), [("high", (1216, 832)), ("standard", (912, 624))])
async def test_the_newer_branch_says_the_resolution_and_nests_its_settings(
    frontend: httpx.AsyncClient,
    conductor: FakeConductor,
    resolution: str,
    size: tuple[int, int],
) -> None:
    body = {
        "prompt": "fog over a harbour",
        "aspectRatio": "3:2",
        "temperature": 0.8,
        "resolution": resolution,
        "config": {**CONFIG, "modelPath": INFO.models[0].name},
    }
    images = await images_of(frontend, "/generate", body)
    assert [size_of(image) for image in images] == [size] * 2
    assert {(spec.steps, spec.guidance) for spec in conductor.specs} == {(30, 7.5)}


async def test_the_newer_branch_reads_the_health_and_takes_a_503_for_away(
    frontend: httpx.AsyncClient,
) -> None:
    health = await frontend.get("/health", headers={"Accept": "application/json"}, timeout=1.5)
    assert health.status_code == 200
    body = health.json()
    assert (body["device"], body["model"]) == (INFO.device, INFO.models[0].name)
    assert body["optimizations"]["scheduler"] == "euler"


async def test_a_failed_answer_can_be_shown_as_text(frontend: httpx.AsyncClient) -> None:
    answer = await frontend.post("/refine", json={"refinePrompt": "warmer", "images": ["no"]})
    assert answer.status_code == 400
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "INVALID_IMAGE" in answer.text


@pytest.mark.parametrize(
    ("fields", "path", "problem"),
    [
        ({"resolution": "low"}, "resolution", "must be one of high, standard"),
        ({"steps": 20, "config": CONFIG}, "config.steps", "is 30, but steps is 20"),
        (
            {"config": {"modelPath": "sdxl-refiner-1.0"}},
            "config.modelPath",
            "is the refiner, which continues other images",
        ),
        (
            {"config": {"stepz": 3}},
            "config.stepz",
            "is not a field of this request; did you mean steps?",
        ),
    ],
    ids=["resolution", "both steps", "refiner", "typo"],
)
async def test_what_the_settings_can_not_mean_is_named(
    frontend: httpx.AsyncClient, fields: dict[str, Any], path: str, problem: str
) -> None:
    answer = await frontend.post("/generate", json={"prompt": "a", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == [{"path": path, "message": problem}]


async def test_pixels_win_over_the_resolution(
    frontend: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    body = {"prompt": "a", "resolution": "standard", "width": 512, "height": 640}
    await images_of(frontend, "/generate", body)
    assert (conductor.specs[0].width, conductor.specs[0].height) == (512, 640)


async def test_an_unknown_model_path_is_not_found(frontend: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "config": {"modelPath": "/models/other"}}
    answer = await frontend.post("/generate", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "MODEL_NOT_FOUND"
    assert "/models/other" not in answer.text
