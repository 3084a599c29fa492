"""The stand-in as Google's own SDK finds it: what our tests call is the API that it knows."""

from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from tests.support.gemini_stand_in import (
    KEY,
    MODEL,
    GeminiStandIn,
    error_of,
    gemini_stand_in,
    image_part,
    made,
    picture,
)


@pytest.fixture
def gemini() -> Iterator[GeminiStandIn]:
    with gemini_stand_in() as server:
        yield server


def answer_from(
    gemini: GeminiStandIn, key: str = KEY, **config: Any
) -> types.GenerateContentResponse:
    """Return what the SDK makes of an answer."""
    options = types.HttpOptions(
        base_url=gemini.url, api_version="v1beta", retry_options=types.HttpRetryOptions(attempts=1)
    )
    client = genai.Client(api_key=key, http_options=options)
    try:
        return client.models.generate_content(
            model=MODEL,
            contents=types.Content(
                role="user",
                parts=[
                    types.Part.from_bytes(data=picture(), mime_type="image/png"),
                    types.Part.from_text(text="a harbour"),
                ],
            ),
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"], image_config=types.ImageConfig(**config)
            ),
        )
    finally:
        client.close()


def test_the_official_sdk_is_understood_and_understands(gemini: GeminiStandIn) -> None:
    gemini.replies = [made({"text": "here it is"}, image_part(picture("JPEG"), "image/jpeg"))]
    answer = answer_from(gemini, aspect_ratio="9:16", image_size="1K")
    (call,) = gemini.calls
    assert call.path == f"/v1beta/models/{MODEL}:generateContent"
    assert {name.lower(): text for name, text in call.headers.items()}["x-goog-api-key"] == KEY
    assert call.image.size == (96, 64)
    assert call.parts[1] == {"text": "a harbour"}
    assert call.body["generationConfig"]["responseModalities"] == ["IMAGE"]
    assert call.body["generationConfig"]["imageConfig"] == {
        "aspectRatio": "9:16",
        "imageSize": "1K",
    }
    assert answer.candidates
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    words, image = answer.parts or []
    assert words.text == "here it is"
    assert image.inline_data
    assert image.inline_data.data == picture("JPEG")


def test_the_official_sdk_reads_refusals_and_errors(gemini: GeminiStandIn) -> None:
    gemini.replies = [made(reason="IMAGE_SAFETY"), error_of(429, "RESOURCE_EXHAUSTED")]
    (candidate,) = answer_from(gemini).candidates or []
    assert candidate.finish_reason == types.FinishReason.IMAGE_SAFETY
    with pytest.raises(errors.ClientError) as busy:
        answer_from(gemini)
    assert (busy.value.code, busy.value.status) == (429, "RESOURCE_EXHAUSTED")
    with pytest.raises(errors.ClientError) as illegal:
        answer_from(gemini, aspect_ratio="7:1")
    assert illegal.value.status == "INVALID_ARGUMENT"
    with pytest.raises(errors.ClientError):
        answer_from(gemini, key="another")
