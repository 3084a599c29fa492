import asyncio
import base64
import logging
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serve_app.core import errors
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.info import Health, HealthStatus
from tests.support.api import Client
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor
from tests.support.waiting import until_async


def picture(width: int = 1024, height: int = 1024) -> str:
    file = BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def size_of(text: str) -> tuple[int, int]:
    return Image.open(BytesIO(base64.b64decode(text, validate=True))).size


async def test_a_prompt_alone_gives_two_pictures_and_says_how(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": "  a red fox "})
    assert answer.status_code == 201
    body = answer.json()
    assert [size_of(text) for text in body["images"]] == [(1024, 1024)] * 2
    meta = body["meta"]
    first, second = meta["seeds"]
    assert second == (first + 1) % 2**32
    assert meta.pop("durationMs") >= 0
    assert len(meta.pop("jobId")) == 32
    meta.pop("seeds")
    assert meta == {
        "model": "sdxl-base-1.0",
        "width": 1024,
        "height": 1024,
        "steps": 30,
        "guidanceScale": 6.9,
        "sampler": "euler",
        "refined": True,
        "warnings": [],
    }
    assert {spec.prompt for spec in conductor.specs} == {"a red fox"}
    assert {spec.handoff for spec in conductor.specs} == {0.8}
    assert all(spec.negative_prompt is None for spec in conductor.specs)


async def test_every_field_reaches_the_spec(client: Client, conductor: FakeConductor) -> None:
    body = {
        "prompt": "a fox",
        "negativePrompt": "",
        "aspectRatio": "16:9",
        "seed": 2**32 - 1,
        "steps": 12,
        "guidanceScale": 4,
        "sampler": "dpmpp_2m_karras",
        "imageCount": 3,
        "refine": True,
        "handoff": 0.6,
        "timeoutSeconds": 90,
        "model": "sdxl-base-1.0",
    }
    answer = await client().post("/generate", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["meta"]["seeds"] == [2**32 - 1, 0, 1]
    spec = conductor.specs[0]
    assert (spec.width, spec.height) == (1344, 768)
    assert (spec.steps, spec.guidance, spec.handoff) == (12, 4, 0.6)
    assert (spec.sampler, spec.negative_prompt) == (Sampler.DPMPP_2M_KARRAS, "")
    assert {task.timeout_s for task in conductor.calls} == {90}


@pytest.mark.parametrize(("temperature", "guidance"), [(0, 9.3), (0.8, 6.9), (2, 3.3)])
async def test_temperature_loosens_the_guidance(
    client: Client, conductor: FakeConductor, temperature: float, guidance: float
) -> None:
    await client().post("/generate", json={"prompt": "a", "temperature": temperature})
    assert conductor.specs[0].guidance == guidance


async def test_pixels_win_over_the_aspect(client: Client, conductor: FakeConductor) -> None:
    body = {"prompt": "a", "aspectRatio": "9:16", "width": 512, "height": 640}
    await client().post("/generate", json=body)
    assert (conductor.specs[0].width, conductor.specs[0].height) == (512, 640)


async def test_without_a_refiner_base_makes_it_all_and_a_wish_for_one_is_answered(
    client: Client, conductor: FakeConductor
) -> None:
    alone = client(info=replace(INFO, refiner=None, warnings=("demo",)))
    plain = (await alone.post("/generate", json={"prompt": "a"})).json()["meta"]
    assert (plain["refined"], plain["warnings"]) == (False, ["demo"])
    wished = (await alone.post("/generate", json={"prompt": "a", "refine": True})).json()["meta"]
    assert wished["refined"] is False
    assert "no refiner" in wished["warnings"][1]
    assert {spec.handoff for spec in conductor.specs} == {1.0}


async def test_refine_false_leaves_the_refiner_out(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": "a", "refine": False})
    assert answer.json()["meta"]["refined"] is False
    assert conductor.specs[0].handoff == 1.0


@pytest.mark.parametrize(
    "names", [("baseImages", "refinePrompt"), ("images", "prompt")], ids=["long", "short"]
)
async def test_both_forms_of_refine_are_taken(
    client: Client, conductor: FakeConductor, names: tuple[str, str]
) -> None:
    images, prompt = names
    body = {
        images: ["data:image/png;base64," + picture(1024, 768), picture(640, 640)],
        prompt: "warmer",
        "config": {"steps": 14, "guidanceScale": 5.5, "modelPath": "sdxl-base-1.0"},
        "seed": 3,
    }
    answer = await client().post("/refine", json=body)
    assert answer.status_code == 201, answer.text
    assert [size_of(text) for text in answer.json()["images"]] == [(1024, 768), (640, 640)]
    spec, other = conductor.specs
    assert (spec.strength, spec.handoff, spec.steps, spec.guidance) == (0.6, 0.8, 14, 5.5)
    assert (spec.seed, other.seed, spec.prompt) == (3, 4, "warmer")
    assert len(conductor.calls[0].inputs.init_image or b"") == 1024 * 768 * 3


async def test_naming_the_refiner_asks_for_the_refiner_alone(
    client: Client, conductor: FakeConductor
) -> None:
    body = {
        "images": [picture(512, 512)],
        "prompt": "warmer",
        "config": {"modelPath": "sdxl-refiner-1.0"},
    }
    meta = (await client().post("/refine", json=body)).json()["meta"]
    assert (meta["model"], meta["refined"]) == ("sdxl-refiner-1.0", True)
    assert {spec.handoff for spec in conductor.specs} == {0.0}


async def test_pictures_go_round_the_base_images_and_each_gets_one(
    client: Client, conductor: FakeConductor
) -> None:
    images = [picture(512, 512), picture(640, 512), picture(512, 640)]
    await client().post("/refine", json={"images": images, "prompt": "a", "imageCount": 5})
    widths = [spec.width for spec in conductor.specs]
    assert widths == [512, 640, 512, 512, 640]
    conductor.calls.clear()
    await client().post("/refine", json={"images": images, "prompt": "a", "imageCount": 1})
    assert len(conductor.specs) == 3


async def test_an_ignored_or_changed_field_gives_a_warning(client: Client) -> None:
    body: dict[str, Any] = {"prompt": "a", "guidanceScale": 1, "negativePrompt": "ugly"}
    meta = (await client().post("/generate", json=body)).json()["meta"]
    assert "the negative prompt is ignored" in meta["warnings"][0]
    body = {"images": [picture(512, 512)], "prompt": "a", "steps": 4, "strength": 0.2}
    meta = (await client().post("/refine", json=body)).json()["meta"]
    assert "one step is run" in meta["warnings"][0]


async def test_the_images_warnings_follow_the_jobs_and_stand_once(
    client: Client, conductor: FakeConductor
) -> None:
    conductor.warnings = ("the prompt was cut", "demo")
    body = {"prompt": "a", "imageCount": 3}
    demo = client(info=replace(INFO, warnings=("demo",)))
    meta = (await demo.post("/generate", json=body)).json()["meta"]
    assert meta["warnings"] == ["demo", "the prompt was cut"]
    job = (await demo.get(f"/jobs/{meta['jobId']}")).json()
    assert job["result"]["meta"]["warnings"] == meta["warnings"]


@pytest.mark.parametrize("accept", ["image/png", "Image/PNG;q=1", "image/png, */*;q=0.5"])
async def test_a_single_image_may_be_sent_bare(client: Client, accept: str) -> None:
    answer = await client().post(
        "/generate", json={"prompt": "a", "imageCount": 1}, headers={"Accept": accept}
    )
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(answer.content)).size == (1024, 1024)


async def test_several_lines_of_accept_are_one(client: Client) -> None:
    lines = [("Accept", "application/json;q=0.1"), ("Accept", "image/png")]
    body = {"prompt": "a", "imageCount": 1}
    answer = await client().post("/generate", json=body, headers=lines)
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("accept", "count"), [("image/png", 2), ("*/*", 1), ("application/json, image/png", 1)]
)
async def test_several_pictures_or_a_wish_for_json_give_json(
    client: Client, accept: str, count: int
) -> None:
    body = {"prompt": "a", "imageCount": count}
    answer = await client().post("/generate", json=body, headers={"Accept": accept})
    assert len(answer.json()["images"]) == count


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {}, "prompt", "is required"),
    ("/generate", {"prompt": "   "}, "prompt", "must not be empty"),
    ("/generate", {"prompt": "a" * 501}, "prompt", "must have at most 500 characters"),
    ("/generate", {"temperature": 7}, "temperature", "must be between 0 and 2, got 7"),
    ("/generate", {"steps": 151}, "steps", "must be between 1 and 150, got 151"),
    ("/generate", {"steps": True}, "steps", "must be a whole number"),
    ("/generate", {"steps": "20"}, "steps", "must be a whole number"),
    ("/generate", {"guidanceScale": 20.5}, "guidanceScale", "must be between 0 and 20, got 20.5"),
    ("/generate", {"seed": -1}, "seed", "must be between 0 and 4294967295, got -1"),
    ("/generate", {"imageCount": 9}, "imageCount", "must be between 1 and 8, got 9"),
    ("/generate", {"handoff": 1.5}, "handoff", "must be between 0 and 1, got 1.5"),
    (
        "/generate",
        {"timeoutSeconds": 0},
        "timeoutSeconds",
        "must be above 0 and at most 3600, got 0",
    ),
    ("/generate", {"sampler": "plms"}, "sampler", "must be one of euler, euler_karras, "),
    ("/generate", {"aspectRatio": "7:5"}, "aspectRatio", "must be one of Auto, 1:1"),
    ("/generate", {"stepz": 20}, "stepz", "is not a field of this request; did you mean steps?"),
    ("/generate", {"colour": 1}, "colour", "is not a field of this request"),
    ("/generate", {"width": 512}, "height", "is required when width is given"),
    ("/generate", {"width": 512, "height": 500}, "height", "must be a multiple of 8 between 256"),
    ("/generate", {"prompt": 7}, "prompt", "must be a string"),
    ("/generate", {"temperature": -0.1}, "temperature", "must be between 0 and 2, got -0.1"),
    (
        "/generate",
        {"temperature": 2.0000000001},
        "temperature",
        "must be between 0 and 2, got 2.0000000001",
    ),
    ("/generate", {"temperature": True}, "temperature", "must be a number"),
    ("/generate", {"temperature": "7"}, "temperature", "must be a number"),
    ("/generate", {"steps": 20.0}, "steps", "must be a whole number"),
    (
        "/generate",
        {"seed": 12345678901234},
        "seed",
        "must be between 0 and 4294967295, got 12345678901234",
    ),
    (
        "/generate",
        {"seed": 10**400},
        "seed",
        f"must be between 0 and 4294967295, got 1{'0' * 39}…",
    ),
    (
        "/generate",
        {"width": 10**300, "height": 512},
        "width",
        f"must be a multiple of 8 between 256 and 2048, got 1{'0' * 39}…",
    ),
    ("/generate", {"x" * 100_000: 1}, "x" * 40 + "…", "is not a field of this request"),
    ("/generate", {"loras": [{"weight": 1}]}, "loras.0.name", "is required"),
    (
        "/generate",
        {"loras": [{"name": "a", "wieght": 1}]},
        "loras.0.wieght",
        "did you mean weight?",
    ),
    (
        "/generate",
        {"width": 2048, "height": 2048},
        "width",
        "times height must be at most 2400000, got 4194304",
    ),
    ("/refine", {"prompt": "a"}, "baseImages", "is required, or images instead"),
    (
        "/refine",
        {"prompt": "a", "images": ["a"], "baseImages": ["a"]},
        "baseImages",
        "cannot be combined with images",
    ),
    ("/refine", {"images": ["!"]}, "refinePrompt", "is required, or prompt instead"),
    ("/refine", {"images": [], "prompt": "a"}, "images", "must have at least 1 entry"),
    ("/refine", {"images": ["a"] * 9, "prompt": "a"}, "images", "must have at most 8 entries"),
    (
        "/refine",
        {"baseImages": ["a", 7], "prompt": "a"},
        "baseImages.1",
        "must be a string",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "strength": 0},
        "strength",
        "must be above 0 and at most 1, got 0",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "strength": 1.5},
        "strength",
        "must be above 0 and at most 1, got 1.5",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "config": {"guidanceScal": 1}},
        "config.guidanceScal",
        "is not a field of this request; did you mean guidanceScale?",
    ),
    (
        "/refine",
        {"images": ["a"], "prompt": "a", "config": {"steps": 0}},
        "config.steps",
        "must be between 1 and 150, got 0",
    ),
    (
        "/refine",
        {"images": [picture(256, 256)], "prompt": "a", "steps": 9, "config": {"steps": 8}},
        "config.steps",
        "is 8, but steps is 9",
    ),
]


@pytest.mark.parametrize(("route", "body", "path", "sentence"), BAD)
async def test_a_bad_field_is_named_with_its_range(
    client: Client,
    conductor: FakeConductor,
    route: str,
    body: dict[str, Any],
    path: str,
    sentence: str,
) -> None:
    if route == "/generate" and body:
        body = {"prompt": "a"} | body
    answer = await client().post(route, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "VALIDATION_ERROR"
    assert sentence in error["message"]
    assert error["details"][0]["path"] == path
    assert sentence in f"{path} {error['details'][0]['message']}"
    assert error["requestId"] == answer.headers["x-request-id"]
    assert not conductor.calls


async def test_a_flood_of_wrong_fields_gets_a_short_answer(client: Client) -> None:
    wrong = {f"x{i}": "secret" * 100 for i in range(5000)}
    answer = await client().post("/generate", json=wrong)
    assert answer.status_code == 400
    assert len(answer.content) < 10_000
    assert "secret" not in answer.text


async def test_a_config_gets_no_suggestion_of_fields_it_does_not_have(client: Client) -> None:
    body = {"images": ["a"], "prompt": "a", "config": {"strenght": 0.5}}
    answer = await client().post("/refine", json=body)
    assert "did you mean" not in answer.text


async def test_a_prompt_is_measured_after_trimming(
    client: Client, conductor: FakeConductor
) -> None:
    answer = await client().post("/generate", json={"prompt": " " * 50 + "a" * 500 + "\n"})
    assert answer.status_code == 201
    assert conductor.specs[0].prompt == "a" * 500


async def test_a_caller_who_leaves_cancels_every_image(client: Client) -> None:
    waiting = FailingConductor(
        errors.OutOfMemory("never: no image has the number it fails at"), at=9
    )
    body = asyncio.ensure_future(
        client(waiting).post("/generate", json={"prompt": "a", "imageCount": 3})
    )
    await until_async(lambda: waiting.begun == 3)
    body.cancel()
    with pytest.raises(asyncio.CancelledError):
        await body
    assert waiting.cancelled == 3


async def test_an_image_that_is_none_is_refused_by_number(client: Client) -> None:
    body = {"images": [picture(256, 256), "bm9uZQ=="], "prompt": "a"}
    answer = await client().post("/refine", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_IMAGE"
    assert "image 1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "sd-2"])
async def test_an_unknown_model_gets_the_list_and_is_not_repeated(
    client: Client, name: str
) -> None:
    body = {"images": [picture(256, 256)], "prompt": "a", "config": {"modelPath": name}}
    for route, request in (("/refine", body), ("/generate", {"prompt": "a", "model": name})):
        answer = await client().post(route, json=request)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "MODEL_NOT_FOUND"
        assert "sdxl-base-1.0" in error["message"]
        assert name not in error["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.OutOfMemory("no room"), 503, "OUT_OF_MEMORY"),
        (errors.ReplicaLost("gone"), 503, "REPLICA_LOST"),
        (errors.Loading("not yet"), 503, "LOADING"),
        (errors.Draining("closing"), 503, "DRAINING"),
        (errors.DeadlineExceeded("too late"), 504, "DEADLINE_EXCEEDED"),
        (errors.EngineFault("/secret/path"), 500, "INTERNAL"),
        (errors.CheckpointError("/secret/path"), 500, "INTERNAL"),
        (ValueError("/secret/path"), 500, "INTERNAL"),
    ],
)
async def test_a_failure_has_its_status_cancels_the_siblings_and_tells_no_secrets(
    client: Client, error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingConductor(error)
    with caplog.at_level(logging.CRITICAL):
        answer = await client(failing).post(
            "/generate",
            json={"prompt": "a canary", "imageCount": 3},
            headers={"Origin": "http://localhost:5173"},
        )
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert failing.cancelled == 2
    for secret in ("/", "secret", "Traceback", "ValueError", "canary"):
        assert secret not in answer.text
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status == 503)
    if status == 503:
        assert answer.headers["retry-after"] == "13"
    assert answer.headers.get("x-should-retry") == ("false" if status == 504 else None)


async def test_health_says_who_is_ready_and_why_not(
    client: Client, conductor: FakeConductor
) -> None:
    ready = await client().get("/health")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "reason": "",
        "model": "sdxl-base-1.0",
        "models": ["sdxl-base-1.0"],
        "refiner": "sdxl-refiner-1.0",
        "loras": [],
        "device": "cpu",
        "precision": "fp32",
        "replicas": {"base": 1, "refiner": 1},
        "owedSeconds": 0.0,
        "safetyFilters": [],
        "termsRequired": False,
        "warnings": [],
        "version": "9.9.9",
    }
    conductor.current_health = replace(
        conductor.current_health, shortfalls=("base: too little memory",)
    )
    assert (await client().get("/health")).json()["warnings"] == ["base: too little memory"]
    conductor.current_health = Health(
        HealthStatus.LOADING, "no replica of base is ready yet", {"base": 0}, 0.0
    )
    loading = await client().get("/health")
    assert loading.status_code == 503
    assert loading.json()["reason"] == "no replica of base is ready yet"
    assert loading.headers["retry-after"] == "1"
    assert (await client().get("/livez")).json() == {"status": "alive"}


async def test_addresses_and_methods_that_are_not_there(client: Client) -> None:
    missing = await client().get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    wrong = await client().get("/generate")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_only_json_is_read_and_not_without_end(
    client: Client, conductor: FakeConductor
) -> None:
    text = await client().post(
        "/generate", content=b'{"prompt":"a"}', headers={"Content-Type": "text/plain"}
    )
    assert (text.status_code, text.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    headers = {"Content-Type": "application/json"}
    announced = await client().post("/generate", content=b"a" * (33 * 2**20), headers=headers)
    assert (announced.status_code, announced.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")

    async def endless() -> Any:
        for _ in range(40):
            yield b"a" * 2**20

    unannounced = await client().post("/generate", content=endless(), headers=headers)
    assert unannounced.status_code == 413
    assert not conductor.calls


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2_3", True), ("a" * 129, False), ("a b", False), ("", False)]
)
async def test_a_request_id_is_taken_only_when_it_is_harmless(
    client: Client, sent: str, kept: bool
) -> None:
    answer = await client().get("/livez", headers={"X-Request-Id": sent})
    got = answer.headers["x-request-id"]
    assert (got == sent) == kept
    assert len(got) == 32 or kept


async def test_a_preflight_is_answered_for_known_origins_alone(client: Client) -> None:
    body = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key",
    }
    known = await client().options("/generate", headers=body)
    assert known.status_code == 200
    assert known.headers["access-control-max-age"] == "600"
    assert known.headers["access-control-allow-origin"] == "http://localhost:5173"
    strange = await client().options("/generate", headers=body | {"Origin": "http://evil.com"})
    assert "access-control-allow-origin" not in strange.headers


async def test_the_api_describes_itself(client: Client) -> None:
    document = (await client().get("/openapi.json")).json()
    post = document["paths"]["/generate"]["post"]
    assert {"201", "400", "404", "413", "415", "500", "503", "504"} <= set(post["responses"])
    assert "HTTPValidationError" not in str(document)
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert "negativePrompt" in fields
