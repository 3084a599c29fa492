"""Fields beyond OpenAI's API, those of it that have no effect, and images that come as text."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.info import ExtensionInfo
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.image_input import split
from tests.support.api import Client, make_api
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.http_server import serving
from tests.support.request_corpus import quarters, saved

MODEL = INFO.default_model.name
FACTS = replace(
    INFO,
    extensions=(
        ExtensionInfo("lora", "ink", (MODEL,)),
        ExtensionInfo("lora", "oil", (MODEL,), default_weight=0.7),
    ),
)
PICTURE = saved(quarters(512, 640))
LORAS = [{"name": "ink", "weight": 0.5}, {"name": "oil", "weight": -1}]
REFS = (ExtensionRef("lora", "ink", 0.5), ExtensionRef("lora", "oil", -1))
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture
def conductor() -> FakeConductor:
    """Return the one behind `client`, of each test its own."""
    return FakeConductor()


@pytest.fixture(scope="module")
def maker() -> FakeConductor:
    return FakeConductor()


@pytest.fixture(scope="module")
def address(maker: FakeConductor) -> Iterator[str]:
    with serving(make_api(maker, Ledger(None), FACTS)) as address:
        yield f"{address}/v1"


@pytest.fixture
def sdk(address: str, maker: FakeConductor) -> Iterator[openai.OpenAI]:
    maker.calls.clear()
    with openai.OpenAI(api_key="any", base_url=address, max_retries=0) as client:
        yield client


@pytest.fixture
def api(client: Client) -> httpx.AsyncClient:
    return client(info=FACTS)


def record_of(b64: str | None) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(split(base64.b64decode(b64 or "")).record or "")
    return record


NATIVE = {
    "negativePrompt": "dull",
    "steps": 9,
    "guidanceScale": 3.5,
    "guidanceInterval": [0.28, 5.42],
    "cache": "deepcache",
    "sampler": "dpmpp_2m_karras",
    "handoff": 0.4,
    "loras": LORAS,
    "timeoutSeconds": 90,
}


@pytest.mark.parametrize(
    "names", [{}, {"negativePrompt": "negative_prompt", "steps": "num_inference_steps"}]
)
def test_a_generation_takes_the_fields_of_the_native_route(
    sdk: openai.OpenAI, maker: FakeConductor, names: dict[str, str]
) -> None:
    extra = {names.get(name, name): value for name, value in NATIVE.items()}
    answer = sdk.images.generate(prompt="a fox", extra_body=extra | {"aspectRatio": "3:2"})
    spec = maker.specs[0]
    assert (spec.negative_prompt, spec.steps, spec.guidance) == ("dull", 9, 3.5)
    assert (spec.sampler, spec.handoff, spec.extensions) == (Sampler.DPMPP_2M_KARRAS, 0.4, REFS)
    assert (spec.guidance_interval, spec.cache) == ((0.28, 5.42), "deepcache")
    assert (spec.width, spec.height, maker.calls[0].timeout_s) == (1216, 832, 90)
    assert not [text for text in (answer.model_extra or {})["warnings"] if "ignored" in text]


def test_an_edit_takes_them_in_a_form(sdk: openai.OpenAI, maker: FakeConductor) -> None:
    extra = NATIVE | {"strength": 0.3, "resizeMode": "pad"}
    sdk.images.edit(image=PICTURE, prompt="a fox", size="1024x1024", extra_body=extra)
    sdk.images.edit(
        image=PICTURE,
        prompt="a fox",
        size="1024x1024",
        extra_body=extra | {"loras": json.dumps(LORAS), "guidanceInterval": "[0.28, 5.42]"},
    )
    spec, other = maker.specs
    assert (spec.strength, spec.steps, spec.handoff, spec.extensions) == (0.3, 9, 0.4, REFS)
    assert (spec.guidance_interval, spec.cache) == ((0.28, 5.42), "deepcache")
    assert replace(other, seed=spec.seed) == spec
    sdk.images.edit(
        image=PICTURE,
        prompt="a fox",
        extra_body={"loras": [{"name": "ink"}, {"name": "oil"}], "refine": False},
    )
    assert [ref.weight for ref in maker.specs[-1].extensions] == [1, 0.7]
    assert maker.specs[-1].handoff == 1


def test_temperature_and_refine_mean_what_they_mean_on_the_native_route(
    sdk: openai.OpenAI, maker: FakeConductor
) -> None:
    sdk.images.generate(prompt="a", extra_body={"temperature": 2, "refine": False})
    assert (maker.specs[0].guidance, maker.specs[0].handoff) == (3.3, 1)


async def test_a_wish_for_a_refiner_that_there_is_not_gives_a_warning(client: Client) -> None:
    alone = client(info=replace(INFO, refiner=None))
    answer = await alone.post(GENERATIONS, json={"prompt": "a", "refine": True})
    files: Any = {"image": ("a", PICTURE), "prompt": (None, "a"), "refine": (None, "true")}
    edited = await alone.post(EDITS, files=files)
    for response in (answer, edited):
        assert "no refiner is configured" in response.json()["warnings"][0]


async def test_a_picture_with_such_fields_is_made_again_from_its_record(
    api: httpx.AsyncClient,
) -> None:
    answer = (await api.post(GENERATIONS, json={"prompt": "a fox"} | NATIVE)).json()
    record = record_of(answer["data"][0]["b64_json"])
    assert (record["request"]["loras"], record["request"]["sampler"]) == (LORAS, NATIVE["sampler"])
    again = (await api.post(record["route"], json=record["request"])).json()
    assert again["data"] == answer["data"]

    form = {"prompt": "a", "size": "1024x1024", "resizeMode": "stretch", "loras": json.dumps(LORAS)}
    image = {"image": ("a", PICTURE)}
    edited = (await api.post(EDITS, data=form, files=image)).json()
    record = record_of(edited["data"][0]["b64_json"])
    assert record["request"]["resizeMode"] == "stretch"
    fields = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record["request"].items()
    }
    again = (await api.post(record["route"], data=fields, files=image)).json()
    assert again["data"] == edited["data"]


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"steps": 0}, "steps", "must be between 1 and 150"),
        ({"guidanceScale": 21}, "guidanceScale", "must be between 0 and 20"),
        ({"steps": 5, "num_inference_steps": 6}, "num_inference_steps", "differs from steps"),
        ({"negativePrompt": "a", "negative_prompt": "b"}, "negative_prompt", "differs from"),
        ({"sampler": "plms"}, "sampler", "must be one of euler"),
        ({"handoff": 2}, "handoff", "must be between 0 and 1"),
        ({"loras": [{"name": "fog"}]}, None, "loras.0.name is unknown. Available: ink, oil"),
        ({"loras": "ink"}, "loras", "must be a list of LoRAs"),
        ({"loras": [{"weight": 1}]}, "loras.0.name", "is required"),
        ({"loras": [{"name": "ink", "weigth": 1}]}, "loras.0.weigth", "is not a field"),
    ],
)
async def test_a_wrong_value_is_refused_under_the_name_it_was_sent_under(
    api: httpx.AsyncClient, fields: dict[str, Any], param: str | None, sentence: str
) -> None:
    answer = await api.post(GENERATIONS, json={"prompt": "a"} | fields)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert (error["param"], sentence in error["message"]) == (param, True), error


@pytest.mark.parametrize(
    "fields",
    [
        [("loras[][name]", "ink"), ("loras[][name]", "oil"), ("loras[][weight]", "1")],
        [("loras[][weight]", "1")],
        [("loras[][name]", "ink"), ("loras[][weight]", "heavy")],
        [("loras", "[" * 5000)],
    ],
)
async def test_loras_of_a_form_that_make_no_sense_are_refused(
    api: httpx.AsyncClient, fields: list[tuple[str, str]]
) -> None:
    files: Any = [("image", ("a", PICTURE)), *((name, (None, text)) for name, text in fields)]
    answer = await api.post(EDITS, files=[*files, ("prompt", (None, "a"))])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("loras")


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"background": "transparent"}, "background transparent is ignored: the image is opaque"),
        ({"style": "vivid"}, "style is ignored: describe the style in the prompt"),
        ({"input_fidelity": "high"}, "input_fidelity is ignored: strength says how much"),
        ({"moderation": "low"}, "moderation is ignored: the operator's filters apply"),
        ({"partial_images": 2}, "partial_images is ignored without stream"),
        ({"output_compression": 50}, "output_compression is ignored: PNG is lossless"),
    ],
)
async def test_what_has_no_effect_is_a_warning_by_name_in_body_and_header(
    api: httpx.AsyncClient, fields: dict[str, Any], warning: str
) -> None:
    image: Any = {"image": ("a", PICTURE)}
    form = {name: str(value) for name, value in fields.items()} | {"prompt": "a"}
    for answer in (
        await api.post(GENERATIONS, json={"prompt": "a"} | fields),
        await api.post(EDITS, data=form, files=image),
    ):
        assert answer.status_code == 200, answer.text
        (warned,) = answer.json()["warnings"]
        assert warned.startswith(warning)
        assert answer.headers.get_list("X-Aura-Warning") == [warned]
        assert answer.json()["background"] == "opaque"


CLIENTS: dict[str, dict[str, Any]] = {  # what they send where nobody chose anything
    "LibreChat": {
        "model": "gpt-image-1",
        "n": 1,
        "background": "auto",
        "output_format": "png",
        "quality": "auto",
        "size": "auto",
        "user": "somebody",
    },
    "Open WebUI": {"model": "dall-e-2", "n": 1, "size": "512x512", "response_format": "b64_json"},
    "LobeChat": {"model": "gpt-image-1", "n": 1, "size": "1024x1536", "moderation": "auto"},
    "openai-python": {"model": "dall-e-3", "size": "1792x1024", "quality": "standard", "n": None},
    "openai-node": {"partial_images": 0, "input_fidelity": "low", "output_compression": 100},
}


@pytest.mark.parametrize("name", CLIENTS)
async def test_what_clients_send_is_served_without_a_warning(
    api: httpx.AsyncClient, name: str
) -> None:
    answer = await api.post(GENERATIONS, json={"prompt": "a"} | CLIENTS[name])
    assert (answer.status_code, answer.json().get("warnings")) == (200, [])
    assert "X-Aura-Warning" not in answer.headers


@pytest.mark.parametrize("field", ["image", "image[]"])
async def test_an_image_of_a_form_may_be_text(
    api: httpx.AsyncClient, conductor: FakeConductor, field: str
) -> None:
    text = base64.b64encode(PICTURE).decode()
    for value in (text, f"data:;base64,{text}", f"data:image/png;name=a.png;base64,{text}"):
        answer = await api.post(EDITS, files=[(field, (None, value)), ("prompt", (None, "a"))])
        assert answer.status_code == 200, answer.text
    sources = {task.inputs.init_image for task in conductor.calls}
    assert len(sources) == 1
    mixed: Any = [(field, (None, text)), (field, ("a.png", PICTURE)), ("n", (None, "2"))]
    answer = await api.post(EDITS, files=[*mixed, ("prompt", (None, "a"))])
    assert len(answer.json()["data"]) == 2


async def test_a_text_image_may_be_as_long_as_the_body(api: httpx.AsyncClient) -> None:
    large = base64.b64encode(saved(Image.effect_noise((1500, 1500), 90))).decode()
    assert len(large) > 2 * 2**20
    answer = await api.post(EDITS, files=[("image", (None, large)), ("prompt", (None, "a"))])
    assert answer.status_code == 200, answer.text


async def test_another_ratio_is_cropped_with_a_warning_or_resized_as_requested(
    api: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    image: Any = {"image": ("a", PICTURE)}
    form = {"prompt": "a", "size": "1024x256"}
    answer = (await api.post(EDITS, data=form, files=image)).json()
    (warning,) = answer["warnings"]
    assert warning.startswith("image 0 was cropped: 80% of its 512x640 pixels are cut away")
    for mode in ("pad", "stretch"):
        answer = (await api.post(EDITS, data=form | {"resizeMode": mode}, files=image)).json()
        assert answer["warnings"] == []
    assert len({task.inputs.init_image for task in conductor.calls}) == 3


async def test_of_many_unknown_fields_eight_are_named_and_the_rest_are_counted(
    api: httpx.AsyncClient,
) -> None:
    body = {"prompt": "a"} | {f"field_{number}": 1 for number in range(11)}
    warnings = (await api.post(GENERATIONS, json=body)).json()["warnings"]
    assert len(warnings) == 9
    assert warnings[-1] == "3 more unknown fields are ignored"


async def test_every_reference_of_the_description_leads_somewhere(api: httpx.AsyncClient) -> None:
    text = (await api.get("/openapi.json")).text
    schemas = json.loads(text)["components"]["schemas"]
    references = set(re.findall(r'"\$ref":\s*"([^"]+)"', text))
    assert references
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
