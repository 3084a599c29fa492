"""Server-sent events (WHATWG HTML, section 9.2): what both doors need of the format."""

from collections.abc import Sequence
from typing import Any

EVENT_STREAM = "text/event-stream"
PING_S = 10  # between two comments, which keep proxies from closing a stream without events


def stream_response(
    description: str, names: Sequence[str], data: str, id: str | None = None
) -> dict[str, Any]:
    """Return how OpenAPI describes a response that is a stream of events.

    `names` are those of the events; `data` and `id` say what these fields hold.
    """
    properties = {
        "event": {"enum": list(names), "description": "What has happened."},
        "data": {"type": "string", "description": data},
        **({"id": {"type": "string", "description": id}} if id else {}),
    }
    event = {"type": "object", "properties": properties, "required": list(properties)}
    return {"description": description, "content": {EVENT_STREAM: {"schema": event}}}


def message(event: str, data: bytes, id: str | None = None) -> bytes:
    """Return an event, whose data is one line."""
    own_id = b"" if id is None else b"id: %b\r\n" % id.encode()
    return b"event: %b\r\n%bdata: %b\r\n\r\n" % (event.encode(), own_id, data)
