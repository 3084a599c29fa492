"""Bodies of requests for one image, and the picture that each must become."""

import base64
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.testing.reference import expected_picture
from serve_app.testing.sleeping_stage import NATIVE_SIZE

HANDOFF = 0.8


def image_body(seed: int, *, steps: int = 20, prompt: str = "a fox", **more: Any) -> dict[str, Any]:
    """Return the body of a request for one image of the native size."""
    return {
        "prompt": prompt,
        "seed": seed,
        "steps": steps,
        "imageCount": 1,
        "width": NATIVE_SIZE,
        "height": NATIVE_SIZE,
        "guidanceScale": 5.0,
        "handoff": HANDOFF,
        **more,
    }


def expected_pixels(body: Mapping[str, Any]) -> bytes:
    """Return the pixels that a body of `image_body` must give."""
    return _pixels(body["prompt"], body["seed"], body["steps"], body["handoff"])


def pixels_of(png: str) -> bytes:
    """Return the pixels of a PNG in base64."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image).tobytes()


@cache
def _pixels(prompt: str, seed: int, steps: int, handoff: float) -> bytes:
    spec = ImageSpec(
        prompt=prompt,
        seed=seed,
        width=NATIVE_SIZE,
        height=NATIVE_SIZE,
        steps=steps,
        guidance=5.0,
        handoff=handoff,
    )
    return expected_picture(spec).tobytes()
