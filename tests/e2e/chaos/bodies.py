"""Bodies of requests, by route, and the pictures that each must become."""

import base64
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.spec import SEED_RANGE, ImageSpec
from serve_app.testing.reference import expected_picture
from serve_app.testing.sleeping_stage import NATIVE_SIZE

GENERATE, REFINE, OPENAI = "/generate", "/refine", "/v1/images/generations"
HANDOFF = 0.8
GUIDANCE = 5.0
STRENGTH = 0.5


def image_body(seed: int, *, steps: int = 20, prompt: str = "a fox", **more: Any) -> dict[str, Any]:
    """Return the body of `GENERATE` for one image of the native size."""
    return {
        "prompt": prompt,
        "seed": seed,
        "steps": steps,
        "imageCount": 1,
        "width": NATIVE_SIZE,
        "height": NATIVE_SIZE,
        "guidanceScale": GUIDANCE,
        "handoff": HANDOFF,
        **more,
    }


def refine_body(seed: int, *, steps: int = 20, prompt: str = "a fox") -> dict[str, Any]:
    """Return the body of `REFINE` for one image from a base image of the native size."""
    return {
        "prompt": prompt,
        "images": [_base_image(seed % 8)],
        "seed": seed,
        "steps": steps,
        "imageCount": 1,
        "guidanceScale": GUIDANCE,
        "strength": STRENGTH,
        "handoff": HANDOFF,
    }


def openai_body(seed: int, *, steps: int = 20, prompt: str = "a fox") -> dict[str, Any]:
    """Return the body of `OPENAI` for one image of the native size."""
    return {
        "prompt": prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "n": 1,
        "size": f"{NATIVE_SIZE}x{NATIVE_SIZE}",
        "guidance_scale": GUIDANCE,
        "handoff": HANDOFF,
    }


def expected_pixels(body: Mapping[str, Any], route: str = GENERATE) -> list[bytes]:
    """Return the pixels of each image that a body of this module must give."""
    steps = body["num_inference_steps"] if route == OPENAI else body["steps"]
    count = body["n"] if route == OPENAI else body["imageCount"]
    base_image = body["images"][0] if route == REFINE else None
    seeds = ((body["seed"] + number) % (SEED_RANGE[1] + 1) for number in range(count))
    return [_pixels(body["prompt"], seed, steps, body["handoff"], base_image) for seed in seeds]


def pixels_of(png: str) -> bytes:
    """Return the pixels of a PNG in base64."""
    return _opened(png).tobytes()


def _opened(png: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image)


@cache
def _base_image(number: int) -> str:
    """Return a PNG of noise in base64."""
    noise = np.random.default_rng(number).integers(0, 256, (NATIVE_SIZE, NATIVE_SIZE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


@cache
def _pixels(prompt: str, seed: int, steps: int, handoff: float, base_image: str | None) -> bytes:
    spec = ImageSpec(
        prompt=prompt,
        seed=seed,
        width=NATIVE_SIZE,
        height=NATIVE_SIZE,
        steps=steps,
        guidance=GUIDANCE,
        handoff=handoff,
        strength=None if base_image is None else STRENGTH,
    )
    inputs = NO_INPUTS if base_image is None else ImageInputs(_opened(base_image).tobytes())
    return expected_picture(spec, inputs).tobytes()
