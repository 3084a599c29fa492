"""An answer counts only if it is the requested picture."""

from io import BytesIO

import numpy as np
from PIL import Image

from serve_app.bench.serve.answer import OK, WRONG_PICTURE, Answer
from serve_app.bench.serve.load import LoadResult
from serve_app.bench.serve.picture_check import PictureCheck
from serve_app.bench.serve.systems.stock_pipeline import by_kind
from serve_app.bench.serve.workload import ImageRequest

RED, BLUE = (ImageRequest(f"a {colour} star", 1, 4, 64, 64) for colour in ("red", "blue"))


def picture(red: int, blue: int, side: int = 64) -> bytes:
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = red, blue
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def result(*pairs: tuple[ImageRequest, bytes]) -> LoadResult:
    return LoadResult(tuple(Answer(request, 1.0, OK, png) for request, png in pairs), 2.0)


def outcomes(judged: LoadResult) -> list[str]:
    return [answer.outcome for answer in judged.answers]


def test_a_picture_of_another_request_is_an_error() -> None:
    check = PictureCheck()
    check.learn(result((RED, picture(200, 0)), (BLUE, picture(0, 200))))
    swapped = result((RED, picture(0, 200)), (BLUE, picture(0, 201)))
    assert outcomes(check.judge(swapped)) == [WRONG_PICTURE, OK]


def test_a_picture_that_nobody_knows_needs_only_its_size() -> None:
    check = PictureCheck()
    judged = check.judge(result((RED, picture(0, 200)), (RED, picture(0, 200, side=32))))
    assert outcomes(judged) == [OK, WRONG_PICTURE]


def test_what_is_no_picture_is_an_error() -> None:
    assert outcomes(PictureCheck().judge(result((RED, b"not a picture")))) == [WRONG_PICTURE]


def test_a_call_of_the_stock_pipeline_has_one_kind_and_a_largest_size() -> None:
    short, long = (ImageRequest("a", 1, steps, 64, 64) for steps in (4, 50))
    worn = ImageRequest("a", 1, 4, 64, 64, lora="lora0")
    assert by_kind([short, long, short, worn, short], 2) == [[0, 2], [4], [1], [3]]
