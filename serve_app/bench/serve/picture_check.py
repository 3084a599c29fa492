"""`PictureCheck`: whether systems that run the same checkpoint make the same pictures.

A pipeline that two threads run at once mixes up their images and answers 200 all the same.
"""

from dataclasses import replace
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from serve_app.bench.serve.answer import OK, WRONG_PICTURE, Answer
from serve_app.bench.serve.load import LoadResult
from serve_app.bench.serve.workload import ImageRequest

_MAX_DIFFERENCE = 3.0  # mean of the levels; other batch sizes round fp32 differently
Pixels = npt.NDArray[np.int16]


class PictureCheck:
    """The pictures that a trusted system has made, by their requests."""

    def __init__(self) -> None:
        self._known: dict[ImageRequest, Pixels] = {}

    def learn(self, result: LoadResult) -> None:
        """Remember the pictures of a system that is trusted."""
        for answer in result.answers:
            if answer.is_ok:
                self._known[answer.request] = pixels_of(answer.picture)

    def judge(self, result: LoadResult) -> LoadResult:
        """Return the result with every picture that is not the requested one as an error."""
        return replace(result, answers=tuple(map(self._judge, result.answers)))

    def _judge(self, answer: Answer) -> Answer:
        if not answer.is_ok:
            return answer
        try:
            pixels = pixels_of(answer.picture)
        except UnidentifiedImageError:
            return replace(answer, outcome=WRONG_PICTURE)
        known = self._known.get(answer.request)
        is_right = pixels.shape[:2] == (answer.request.height, answer.request.width) and (
            known is None or float(np.abs(pixels - known).mean()) <= _MAX_DIFFERENCE
        )
        return replace(answer, outcome=OK if is_right else WRONG_PICTURE)


def pixels_of(picture: bytes) -> Pixels:
    """Return the levels of a picture (height, width, 3).

    Raises `UnidentifiedImageError` if it is none.
    """
    with Image.open(BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"), np.int16)
