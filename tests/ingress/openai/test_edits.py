"""Edits, asked for by OpenAI's own client over HTTP, and as bare forms."""

import base64
from typing import Any

import openai
import pytest

from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor
from tests.support.openai_client import file, opened


def test_one_file_or_several_are_edited(sdk: openai.OpenAI, conductor: FakeConductor) -> None:
    answer = sdk.images.edit(
        image=file(), prompt="warmer", extra_body={"strength": 0.4, "num_inference_steps": 9}
    )
    assert answer.data is not None
    assert [opened(item.b64_json).size for item in answer.data] == [(512, 640)]
    (spec,) = conductor.specs
    assert (spec.prompt, spec.strength, spec.steps) == ("warmer", 0.4, 9)
    conductor.calls.clear()
    several = [("a.png", file()), ("b.webp", file("navy", (640, 512), "WEBP"))]
    both = sdk.images.edit(model="gpt-image-1", image=several, prompt="warmer", n=2)
    assert [opened(item.b64_json).size for item in both.data or ()] == [(512, 640), (640, 512)]
    sources = [task.inputs.init_image or b"" for task in conductor.calls]
    assert [source[:3] for source in sources] == [b"\xff\xa5\x00", b"\x00\x00\x80"]


def test_an_edit_gives_n_images(sdk: openai.OpenAI, conductor: FakeConductor) -> None:
    response = sdk.images.with_raw_response.edit(image=[file(), file("navy")], prompt="a", n=1)
    answer = response.parse()
    assert len(answer.data or ()) == len(conductor.calls) == 1
    assert (conductor.calls[0].inputs.init_image or b"")[:3] == b"\xff\xa5\x00"
    passed_over = (
        "image 1 of 2, counted from 0, is passed over: each of the n images is made from one base "
        "image, and n is 1"
    )
    assert passed_over in (answer.model_extra or {})["warnings"]
    assert passed_over in response.headers.get_list("X-Aura-Warning")
    answer = sdk.images.edit(image=[file(), file(), file()], prompt="a")
    assert "images 1 to 2 of 3" in str(answer.model_extra)
    assert len(sdk.images.edit(image=[file(), file()], prompt="a", n=3).data or ()) == 3


def test_an_edit_fills_the_requested_size(sdk: openai.OpenAI, conductor: FakeConductor) -> None:
    sdk.images.edit(image=file(), prompt="a", size="1024x1024")
    assert (conductor.specs[0].width, conductor.specs[0].height) == (1024, 1024)


def test_the_prompt_of_an_edit_stands_alone_for_a_picture_of_ours_too(
    sdk: openai.OpenAI, conductor: FakeConductor
) -> None:
    made = sdk.images.generate(prompt="misty forest").data
    assert made is not None
    sdk.images.edit(image=base64.b64decode(made[0].b64_json or ""), prompt="warmer")
    assert conductor.specs[-1].prompt == "warmer"


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"mask": file()}, "mask", "is not supported. Omit it to edit the whole image"),
        ({"stream": True, "response_format": "url"}, "response_format", "can't be url in a str"),
        ({"extra_body": {"strength": 0}}, "strength", "must be above 0"),
        ({"n": 0}, "n", "must be at least 1"),
        ({"image": [file()] * 11}, "image", "at most 10 files"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_illegal_edit_is_answered_in_openais_shape(
    sdk: openai.OpenAI, conductor: FakeConductor, fields: dict[str, Any], param: str, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.edit(**({"image": file(), "prompt": "a"} | fields))
    assert refused.value.param == param
    assert sentence in refused.value.message
    assert not conductor.calls


def test_a_file_that_is_no_image_is_named_by_its_number(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="image 1 is not a readable PNG") as refused:
        sdk.images.edit(image=[file(), b"no picture"], prompt="a", n=2)
    assert refused.value.code == "invalid_image"


def test_a_key_of_idempotency_gives_the_same_picture_again(
    sdk: openai.OpenAI, conductor: FakeConductor
) -> None:
    again = {"Idempotency-Key": "once"}
    first = sdk.images.edit(image=file(), prompt="a", extra_headers=again)
    second = sdk.images.edit(image=file(), prompt="a", extra_headers=again)
    assert first.to_dict() == second.to_dict()
    assert len(conductor.calls) == 1
    with pytest.raises(openai.UnprocessableEntityError):
        sdk.images.edit(image=file("navy"), prompt="a", extra_headers=again)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"no form", "multipart/form-data", 400),
        (b"no form", "multipart/form-data; boundary=x", 400),
        (b'{"prompt": "a"}', "application/json", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_an_edit_is_a_form(client: Client, content: bytes, kind: str, status: int) -> None:
    answer = await client().post(
        "/v1/images/edits", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "utf-16"])
async def test_a_form_is_in_utf_8(client: Client, charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\na\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    headers = {"Content-Type": kind}
    answer = await client().post("/v1/images/edits", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "charset")


async def test_a_form_has_each_field_once_and_a_file_is_a_file(client: Client) -> None:
    forms: list[Any] = [
        [("image", ("a.png", file())), ("prompt", (None, "a")), ("prompt", (None, "b"))],
        [("image", (None, "text")), ("prompt", (None, "a"))],
        [("image", ("a.png", file())), ("prompt", ("a.txt", b"a"))],
        [("prompt", (None, "a"))],
    ]
    for files in forms:
        answer = await client().post("/v1/images/edits", files=files)
        assert answer.status_code == 400, answer.text
