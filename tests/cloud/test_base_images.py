"""Several base images: each is sent by a call of its own, and none is combined with another."""

import base64
from typing import Any

import pytest

from tests.support.cloud_caller import Caller
from tests.support.gemini_stand_in import GeminiStandIn, picture

COLOURS = {"teal": (0, 128, 128), "navy": (0, 0, 128), "orange": (255, 165, 0)}
FILES = [picture(size=(512, 512), colour=colour) for colour in COLOURS]
IMAGES = [base64.b64encode(file).decode() for file in FILES]
A1111_BODY = {"prompt": "at dawn", "init_images": IMAGES}


@pytest.mark.parametrize(
    ("route", "body", "sent"),
    [
        ("/refine", {"prompt": "at dawn", "images": IMAGES, "imageCount": 1}, [1, 1, 1]),
        ("/refine", {"prompt": "at dawn", "images": IMAGES, "imageCount": 5}, [2, 2, 1]),
        ("/sdapi/v1/img2img", A1111_BODY, [1, 1, 1]),
    ],
)
async def test_each_base_image_has_a_call_of_its_own_and_they_take_turns_for_more(
    caller: Caller, gemini: GeminiStandIn, route: str, body: dict[str, Any], sent: list[int]
) -> None:
    async with caller() as client:
        answer = await client.post(route, json=body)
    assert answer.is_success, answer.text
    assert len(answer.json()["images"]) == sum(sent)
    assert calls_by_colour(gemini) == sent


async def test_an_edit_makes_as_many_images_as_it_asks_for_from_the_first_base_images(
    caller: Caller, gemini: GeminiStandIn
) -> None:
    files = [("image[]", (f"{number}.png", file, "image/png")) for number, file in enumerate(FILES)]
    async with caller() as client:
        answer = await client.post(
            "/v1/images/edits", data={"prompt": "at dawn", "n": "2"}, files=files
        )
    assert answer.is_success, answer.text
    assert calls_by_colour(gemini) == [1, 1, 0]
    assert "image 2 of 3, counted from 0, is passed over" in " ".join(answer.json()["warnings"])


def calls_by_colour(gemini: GeminiStandIn) -> list[int]:
    """Return how many calls sent each base image; every call sends one."""
    assert all(len(call.parts) == 2 for call in gemini.calls)  # an image and a text
    sent = [call.image.getpixel((9, 9)) for call in gemini.calls]
    return [sent.count(colour) for colour in COLOURS.values()]
