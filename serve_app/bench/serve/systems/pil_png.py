"""PNG as the examples of all frameworks write it: Pillow, with its defaults."""

from io import BytesIO
from typing import Any


def to_png(image: Any) -> bytes:
    """Return a PIL image as PNG, with the settings that Pillow has by default."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
