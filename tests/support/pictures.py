"""Pictures as they stand in JSON bodies."""

import base64
from io import BytesIO

from PIL import Image


def picture(width: int = 1024, height: int = 1024) -> str:
    """Return an orange PNG in base64."""
    file = BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def size_of(text: str) -> tuple[int, int]:
    """Return width and height of an image in base64."""
    return Image.open(BytesIO(base64.b64decode(text, validate=True))).size
