"""`RequestContext`: who sent a request, and what its job must know of that."""

from collections.abc import Callable
from dataclasses import dataclass

# Keeps the bytes of a request's images counted beyond the request; returns what gives them back.
HoldImages = Callable[[], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who sent a request to which route, and when; `key` and `fingerprint` make it idempotent.

    `arrived` is a time of the event loop, from which its deadline counts; None for now.
    `hold_images` is called once a job needs the request's images. `views`: the caller watches, and
    wants previews; `follows`: it wants progress alone. `is_detached`: the job goes on when the call
    ends. `webhook` is the receiver that is told of its end.
    """

    caller: str
    route: str
    key: str | None = None
    fingerprint: str = ""  # a digest of the body
    arrived: float | None = None
    hold_images: HoldImages | None = None
    views: bool = False
    follows: bool = False
    is_detached: bool = False
    webhook: str | None = None
