"""OpenAI's own client, streaming: partial images, and each image when it is done."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OutOfMemory
from serve_app.core.service.events import Generated, ImageEvent, Preview, Progress
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.ledger import Ledger
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving
from tests.support.openai_client import file, opened

STEPS = 8


class PreviewingConductor(FakeConductor):
    """Shows a preview at every step, each a bit lighter; fails if it has an error.

    A step takes long enough for a reader to get its preview before the next one.
    """

    error: Exception | None = None

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        for step in range(STEPS):
            self.outlooks[task.id] = Outlook(Stage.BASE, step, STEPS, 0, 0.0, 1.0)
            yield Progress(step)
            yield Preview(step, _jpeg(step * 255 // STEPS))
            await asyncio.sleep(0.05)
        if self.error is not None:
            raise self.error
        yield Generated(await self.generate(task))


def _jpeg(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def maker() -> PreviewingConductor:
    return PreviewingConductor()


@pytest.fixture(scope="module")
def address(maker: PreviewingConductor) -> Iterator[str]:
    with serving(make_api(maker, Ledger(None))) as address:
        yield f"{address}/v1"


@pytest.fixture
def sdk(address: str, maker: PreviewingConductor) -> Iterator[openai.OpenAI]:
    maker.error = None
    with openai.OpenAI(api_key="any", base_url=address, max_retries=0) as client:
        yield client


def test_a_generation_has_so_many_partial_images_and_the_final_one(sdk: openai.OpenAI) -> None:
    stream = sdk.images.generate(
        prompt="a fox", size="1024x1024", stream=True, partial_images=2, extra_body={"seed": 5}
    )
    events: list[Any] = list(stream)
    *partials, final = events
    assert [event.type for event in partials] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert [event.type for event in (final,)] == ["image_generation.completed"]
    sizes = {opened(event.b64_json).size for event in (*partials, final)}
    assert sizes == {(1024, 1024)}
    shades = [opened(event.b64_json).convert("L").tobytes()[0] for event in partials]
    assert shades == sorted(set(shades))  # the later one is further
    plain = sdk.images.generate(prompt="a fox", size="1024x1024", extra_body={"seed": 5}).data
    assert plain is not None
    assert plain[0].b64_json == final.b64_json


def test_an_edit_streams_under_its_own_names_in_the_requested_format(sdk: openai.OpenAI) -> None:
    stream = sdk.images.edit(
        image=file(), prompt="warmer", stream=True, partial_images=1, output_format="webp"
    )
    partial, final = list(stream)
    assert (partial.type, final.type) == ("image_edit.partial_image", "image_edit.completed")
    assert {opened(event.b64_json).format for event in (partial, final)} == {"WEBP"}


def test_without_partial_images_there_are_none(sdk: openai.OpenAI) -> None:
    (final,) = list(sdk.images.generate(prompt="a", stream=True))
    assert final.type == "image_generation.completed"


def test_each_of_several_images_is_completed(sdk: openai.OpenAI) -> None:
    events: list[Any] = list(sdk.images.generate(prompt="a", n=3, stream=True, partial_images=1))
    completed = [event for event in events if event.type == "image_generation.completed"]
    assert len({event.model_extra["seed"] for event in completed}) == 3
    assert len(events) == 6


def test_an_error_in_the_middle_is_raised_by_the_client(
    sdk: openai.OpenAI, maker: PreviewingConductor
) -> None:
    maker.error = OutOfMemory("no room")
    with pytest.raises(openai.APIError, match="no room"):
        list(sdk.images.generate(prompt="a", stream=True))


def test_an_illegal_request_has_its_own_status(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        sdk.images.generate(prompt="", stream=True)


def test_a_file_in_base64_is_whole(sdk: openai.OpenAI) -> None:
    (final,) = list(sdk.images.generate(prompt="a", stream=True))
    assert base64.b64decode(final.b64_json).startswith(b"\x89PNG")


def test_a_key_makes_one_job_whichever_way_its_images_are_sent(
    sdk: openai.OpenAI, maker: PreviewingConductor
) -> None:
    maker.calls.clear()
    key = {"Idempotency-Key": "a-job"}
    plain = sdk.images.generate(prompt="a", extra_headers=key).data
    (final,) = list(sdk.images.generate(prompt="a", stream=True, extra_headers=key))
    again: list[Any] = list(
        sdk.images.generate(prompt="a", stream=True, partial_images=2, extra_headers=key)
    )
    assert plain is not None
    assert plain[0].b64_json == final.b64_json == again[-1].b64_json
    made: list[Any] = [plain[0], final, again[-1]]
    assert len({image.model_extra["seed"] for image in made}) == len(maker.calls) == 1
