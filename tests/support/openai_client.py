"""What tests of the OpenAI routes send, and how they read the answer."""

import base64
from io import BytesIO

from PIL import Image

KEY = "a-key-of-ours"


def opened(b64: str | None) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(b64 or "", validate=True)))
    image.load()
    return image


def file(colour: str = "orange", size: tuple[int, int] = (512, 640), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, lossless=True)
    return buffer.getvalue()
