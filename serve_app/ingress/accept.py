"""What a client wants: the media type (RFC 9110, 12.5.1), and whether it waits (RFC 7240)."""

import re
from collections.abc import Sequence

from fastapi import Request

from serve_app.ingress.http_errors import NotAcceptable

JSON = "application/json"
PNG = "image/png"
_RANGE = re.compile(r"(?:\*|[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+)\Z")


def negotiate(request: Request, offers: Sequence[str], remedy: str = "") -> str:
    """Return the media type that a request wants most. Raises `NotAcceptable`.

    `remedy` says what the caller can do, if that is not to ask for one of the offers.
    """
    accept = ",".join(request.headers.getlist("accept"))
    best = preferred(accept, offers)
    if best is None:
        raise NotAcceptable(
            f"the Accept header allows none of what this request returns: {', '.join(offers)}",
            remedy=remedy,
        )
    return best


def prefers_async(request: Request) -> bool:
    """Return whether a client would rather not wait for the response (RFC 7240, 4.1)."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(part.split(";")[0].strip() == "respond-async" for part in preferences)


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """Return the offer of the highest weight, the first among equals; None if all have none.

    A header without a media range that can be read allows everything, as an absent one does.
    """
    ranges = dict(
        parsed for part in accept.lower().split(",") if (parsed := _parse_range(part)) is not None
    )
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _weight(offer, ranges))
    return best if _weight(best, ranges) > 0 else None


def _parse_range(part: str) -> tuple[str, float] | None:
    """Return a media range and its weight, without other parameters."""
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    if not _RANGE.match(kind):
        return None
    weights = [value for name, _, value in (p.partition("=") for p in parameters) if name == "q"]
    try:
        weight = float(weights[0]) if weights else 1.0
    except ValueError:
        weight = 0.0
    is_legal = 0 <= weight <= 1
    return "*/*" if kind == "*" else kind, weight if is_legal else 0.0


def _weight(media_type: str, ranges: dict[str, float]) -> float:
    """Return the weight of the most specific range that a media type falls in."""
    family = media_type.split("/")[0] + "/*"
    return next((ranges[name] for name in (media_type, family, "*/*") if name in ranges), 0.0)
