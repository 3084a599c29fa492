"""Server-sent events (WHATWG HTML, section 9.2): what both doors need of the format."""

EVENT_STREAM = "text/event-stream"
PING_S = 10  # between two comments, which keep proxies from closing a stream without events


def message(event: str, data: bytes, id: str | None = None) -> bytes:
    """Return an event, whose data is one line."""
    own_id = b"" if id is None else b"id: %b\r\n" % id.encode()
    return b"event: %b\r\n%bdata: %b\r\n\r\n" % (event.encode(), own_id, data)
