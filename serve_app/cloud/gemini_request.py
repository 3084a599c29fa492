"""The body of a `generateContent` call for one image, from its task.

Where there is an input image, it comes before the text, as Google's own examples have it.
"""

import json
from base64 import b64encode
from io import BytesIO
from typing import Any

from PIL import Image

from serve_app.core.service.tasks import ImageTask

# What the frontend asked Gemini for, in words of our own.
_GENERATION = (
    "Create one expressive picture of high quality that conveys this mood: {prompt}. "
    "Leave out all text, letters and typography."
)
_REFINEMENT = (
    "Take the picture that is given as inspiration and create a new one on this theme: {prompt}. "
    "Carry over its style and atmosphere, but do not return a mere edit or copy of it."
)


def request_body(task: ImageTask, image_size: str) -> bytes:
    """Return the JSON of the call that makes a task's image. It takes time: not on an event loop.

    An image from an input image without a ratio of its own keeps that of the input.
    """
    spec, image = task.spec, task.inputs.init_image
    parts: list[dict[str, Any]] = []
    if image is not None:
        data = b64encode(_png(image, spec.width, spec.height)).decode()
        parts.append({"inlineData": {"mimeType": "image/png", "data": data}})
    wrapper = _GENERATION if image is None else _REFINEMENT
    parts.append({"text": wrapper.replace("{prompt}", spec.prompt)})
    aspect = {"aspectRatio": spec.aspect} if spec.aspect else {}
    body = {
        "contents": [{"role": "user", "parts": parts}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {**aspect, "imageSize": image_size},
        },
    }
    return json.dumps(body).encode()


def _png(rgb: bytes, width: int, height: int) -> bytes:
    file = BytesIO()
    Image.frombytes("RGB", (width, height), rgb).save(file, "PNG", compress_level=1)
    return file.getvalue()
