"""Where the image of an answer may stand, and what becomes of its file."""

import base64
import json
from collections.abc import Mapping
from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve_app.cloud.gemini_answer import png_of
from tests.support.gemini_stand_in import answer_of, image_part, picture

ORANGE = (255, 165, 0)


def made_of(*parts: Mapping[str, object]) -> Image.Image:
    """Return the image that an answer of these parts comes to."""
    image = Image.open(BytesIO(png_of(json.dumps(answer_of(*parts)).encode())))
    image.load()
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


def test_the_image_may_stand_behind_words() -> None:
    image = made_of({"text": "Here"}, {"text": "it is"}, image_part(picture()), {"text": "bye"})
    assert image.getpixel((0, 0)) == ORANGE


def test_the_first_of_several_images_counts_but_no_draft_of_a_thought() -> None:
    draft = {**image_part(picture(colour="black")), "thought": True}
    image = made_of(draft, image_part(picture()), image_part(picture(colour="white")))
    assert image.getpixel((0, 0)) == ORANGE


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_every_format_becomes_a_png(kind: str) -> None:
    image = made_of(image_part(picture(kind), "image/png"))  # whatever its label says
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) <= 4 for a, b in zip(pixel, ORANGE, strict=True))


def test_a_transparent_image_is_put_on_white_and_its_texts_are_dropped() -> None:
    texts, file = PngInfo(), BytesIO()
    texts.add_text("parameters", "what somebody else wrote")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(file, "PNG", pnginfo=texts)
    image = made_of(image_part(file.getvalue()))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert not image.info


def test_base64_of_either_alphabet_is_read() -> None:
    part = {"inlineData": {"data": base64.urlsafe_b64encode(picture()).decode().rstrip("=")}}
    assert made_of(part).getpixel((0, 0)) == ORANGE


def test_a_colour_profile_is_not_passed_on() -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8), "orange").save(file, "PNG", icc_profile=b"of somebody else")
    assert Image.open(BytesIO(file.getvalue())).info
    assert not made_of(image_part(file.getvalue())).info
