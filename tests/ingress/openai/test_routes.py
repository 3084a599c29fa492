"""The OpenAI routes, called by OpenAI's own client over HTTP."""

from dataclasses import replace
from typing import Any

import openai
import pytest

from serve_app.core import errors
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.openai.routes import ALIASES
from tests.support.api import ORIGIN, Client, make_api
from tests.support.fake_conductor import INFO, FailingConductor, FakeConductor
from tests.support.http_server import serving
from tests.support.openai_client import KEY, opened


def test_a_prompt_alone_gives_one_picture(sdk: openai.OpenAI, conductor: FakeConductor) -> None:
    answer = sdk.images.generate(prompt="a red fox")
    assert answer.data is not None
    (picture,) = answer.data
    assert opened(picture.b64_json).size == (1024, 1024)
    assert (answer.size, answer.output_format, answer.background) == ("1024x1024", "png", "opaque")
    assert answer.created > 1_700_000_000
    (spec,) = conductor.specs
    assert (spec.prompt, spec.steps, spec.guidance, spec.handoff) == ("a red fox", 30, 6.9, 0.8)


def test_every_field_reaches_the_spec(sdk: openai.OpenAI, conductor: FakeConductor) -> None:
    answer = sdk.images.generate(
        prompt="a fox",
        model="sdxl-base-1.0",
        n=3,
        size="1536x1024",
        response_format="b64_json",
        extra_body={
            "seed": 2**32 - 1,
            "negative_prompt": "dull",
            "num_inference_steps": 12,
            "guidance_scale": 4,
        },
    )
    assert answer.data is not None
    assert [item.model_extra for item in answer.data] == [{"seed": s} for s in (2**32 - 1, 0, 1)]
    spec = conductor.specs[0]
    assert (spec.width, spec.height, spec.steps, spec.guidance) == (1536, 1024, 12, 4)
    assert spec.negative_prompt == "dull"


@pytest.mark.parametrize("name", ALIASES)
def test_a_client_with_a_name_of_openais_in_its_code_is_served(
    sdk: openai.OpenAI, name: str
) -> None:
    """As LibreChat has it: the name fixed, everything else "auto"."""
    answer = sdk.images.generate(
        model=name,
        prompt="a",
        size="auto",
        quality="auto",
        background="auto",
        moderation="auto",
        user="somebody",
    )
    assert answer.data
    assert answer.model_extra == {"warnings": []}
    assert sdk.models.retrieve(name).id == name


def test_a_newer_name_of_openais_means_the_default_model_with_a_warning(
    sdk: openai.OpenAI,
) -> None:
    answer = sdk.images.generate(model="gpt-image-9-mini", prompt="a")
    assert answer.model_extra == {
        "warnings": ["there is no model gpt-image-9-mini: sdxl-base-1.0 was used"]
    }


def test_the_models_there_are(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list()
    assert (model.id, model.object, model.owned_by) == ("sdxl-base-1.0", "model", "aura-serve")
    assert (model.model_extra or {})["license"] == "CreativeML Open RAIL++-M"
    with pytest.raises(openai.NotFoundError, match="gpt-image-1"):
        sdk.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("quality", "steps"), [("low", 15), ("medium", 30), ("standard", 30), ("high", 50), ("hd", 50)]
)
def test_quality_is_a_number_of_steps(
    sdk: openai.OpenAI, conductor: FakeConductor, quality: Any, steps: int
) -> None:
    assert sdk.images.generate(prompt="a", quality=quality).quality == quality
    assert conductor.specs[0].steps == steps
    sdk.images.generate(prompt="a", quality=quality, extra_body={"num_inference_steps": 7})
    assert conductor.specs[1].steps == 7


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_three_formats_are_made_and_all_remember_their_request(
    sdk: openai.OpenAI, kind: Any
) -> None:
    answer = sdk.images.generate(prompt="a red föx", output_format=kind, output_compression=80)
    assert answer.data is not None
    image = opened(answer.data[0].b64_json)
    assert (image.format or "").lower() == answer.output_format == kind
    infotext = image.info.get("parameters")
    if kind != "png":
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        infotext = comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert str(infotext).startswith("a red föx\nSteps: 30, Sampler: Euler")
    packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
    assert b"trainedAlgorithmicMedia" in packet


def test_a_size_the_checkpoint_does_not_make_is_fitted_with_a_warning(
    sdk: openai.OpenAI, conductor: FakeConductor
) -> None:
    answer = sdk.images.generate(prompt="a", size="3840x2160")
    spec = conductor.specs[0]
    assert answer.size == f"{spec.width}x{spec.height}"
    assert abs(spec.width / spec.height - 16 / 9) < 0.02
    assert "size 3840x2160 was fitted" in str(answer.model_extra)


def test_names_that_openai_may_add_make_no_difference_but_a_warning(sdk: openai.OpenAI) -> None:
    extra = {"frame_count": 4, "user": "x", "style": "vivid"}
    answer = sdk.images.generate(prompt="a", extra_body=extra)
    assert answer.model_extra == {
        "warnings": [
            "style is ignored: describe the style in the prompt",
            "frame_count is not a field of this API and is ignored",
        ]
    }


def test_the_images_warnings_are_in_the_response(
    sdk: openai.OpenAI, conductor: FakeConductor
) -> None:
    conductor.warnings = ("the prompt was cut",)
    answer = sdk.images.generate(prompt="a", extra_body={"frame_count": 4})
    assert answer.model_extra == {
        "warnings": [
            "frame_count is not a field of this API and is ignored",
            "the prompt was cut",
        ]
    }


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": "a" * 4001}, "prompt", "at most 4000 characters"),
        ({"n": 11}, "n", "must be at most 10"),
        ({"size": "big"}, "size", 'must be "auto" or WIDTHxHEIGHT'),
        ({"response_format": "file"}, "response_format", "'b64_json' or 'url'"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"background": "red"}, "background", "'auto', 'opaque' or 'transparent'"),
        ({"stream": True, "response_format": "url"}, "response_format", "can't be url in a str"),
        ({"stream": True, "partial_images": 4}, "partial_images", "must be at most 3"),
        ({"extra_body": {"seed": -1}}, "seed", "must be between 0 and 4294967295"),
        ({"extra_body": {"guidance_scale": 21}}, "guidance_scale", "must be between 0 and 20"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "between 1 and 150"),
    ],
)
def test_an_illegal_request_is_answered_in_openais_shape(
    sdk: openai.OpenAI, conductor: FakeConductor, fields: dict[str, Any], param: str, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(**({"prompt": "a"} | fields))
    error = refused.value
    assert (error.param, error.type, error.code) == (
        param,
        "invalid_request_error",
        "validation_error",
    )
    assert sentence in error.message
    assert not conductor.calls


def test_a_wrong_key_and_a_wrong_model_raise_what_the_client_knows(address: str) -> None:
    with openai.OpenAI(api_key="wrong", base_url=address, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.images.generate(prompt="a")
        assert refused.value.type == "authentication_error"
    with (
        openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as known,
        pytest.raises(openai.NotFoundError, match="sdxl-base"),
    ):
        known.images.generate(prompt="a", model="../../etc/passwd")


@pytest.mark.parametrize(
    ("error", "raised", "tries"),
    [
        (errors.OutOfMemory("no room"), openai.InternalServerError, 2),
        (errors.DeadlineExceeded("too late"), openai.InternalServerError, 2),
        (errors.DeadlineImpossible("never"), openai.InternalServerError, 1),
        (errors.SafetyBlock("refused"), openai.UnprocessableEntityError, 1),
    ],
)
def test_the_client_tries_again_only_what_may_come_right(
    error: Exception, raised: type[Exception], tries: int
) -> None:
    failing = FailingConductor(error, at=0)
    failing.owed = 0.5  # and so the client waits one second
    api = make_api(failing, Ledger(None), info=replace(INFO, default_image_count=1))
    with (
        serving(api) as address,
        openai.OpenAI(api_key="any", base_url=f"{address}/v1", max_retries=1) as client,
        pytest.raises(raised),
    ):
        client.images.generate(prompt="a")
    assert failing.begun == tries


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "once"}])
async def test_what_makes_no_difference_may_be_anything(client: Client, key: Any) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    fields = {"prompt": "a", "user": deep, "metadata": {"a": [1]}}
    answer = await client().post("/v1/images/generations", json=fields, headers=key)
    assert answer.status_code == 200, answer.text


async def test_a_page_with_openais_javascript_client_may_ask(client: Client) -> None:
    sent = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os," + (
        "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
        "x-stainless-runtime-version,x-stainless-timeout"
    )
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": sent,
    }
    answer = await client().options("/v1/images/generations", headers=headers)
    assert answer.status_code == 200


async def test_errors_elsewhere_keep_our_own_shape(client: Client) -> None:
    ours = await client().post("/generate", json={})
    theirs = await client().post("/v1/images/generations", json={})
    assert set(ours.json()["error"]) == {"code", "message", "details", "requestId"}
    assert set(theirs.json()["error"]) == {"message", "type", "param", "code"}
