"""A message of the protocol without the file that it may hold.

Frames of the SDK keep the message until its answer is sent, which may be minutes later. So the
megabytes of an image are taken out before the SDK sees it.
"""

import json
from typing import Any

from serve_app.ingress.input_file import InputFile

FILE = "image"  # the argument that holds one
_TAKEN = "taken"  # in its place


def without_file(message: Any) -> tuple[bytes, InputFile | None]:
    """Return a message as JSON with its file taken out of it, and that file if there is one."""
    file = None
    match message:
        case {"params": {"arguments": {"image": str() as text} as arguments}}:
            file = InputFile.of_text(text)
            arguments[FILE] = _TAKEN
    return json.dumps(message, separators=(",", ":")).encode(), file
