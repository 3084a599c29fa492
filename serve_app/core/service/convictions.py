"""`Convictions`: which images have killed replicas, and whose they were. No clock of its own.

What one ingress process learns it sends to the others. One that starts later learns the same way,
at the cost of two more replicas.
"""

from collections import deque
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from serve_app.core.caller import Caller
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import ImageKillsReplica, RateLimited

REFUSED_S = 600.0  # seconds that a convicted image, or a caller with too many of them, is refused
STRIKES = 3  # convictions of one caller within `STRIKES_S` after which the caller is refused
STRIKES_S = 3600.0
MAX_KEPT = 10_000  # images, and callers; the oldest are forgotten

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Conviction:
    """An image that has killed a replica while it ran alone, and the caller whose it was."""

    fingerprint: str  # equal for two requests of the same image
    caller: str  # the name

    @classmethod
    def of(cls, spec: ImageSpec, inputs: ImageInputs, caller: Caller) -> "Conviction":
        """Return the conviction of an image."""
        return cls(_fingerprint(spec, inputs), caller.name)


class Convictions:
    """The convicted images of the last ten minutes, and the strikes of the last hour."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}  # of the last conviction, by the image's fingerprint
        self._strikes: dict[str, deque[float]] = {}  # times, by the caller's name

    def add(self, conviction: Conviction, now: float) -> None:
        """Take note of a conviction, by this process or by another one."""
        _renew(self._times, conviction.fingerprint, now)
        strikes = self._strikes.get(conviction.caller) or deque(maxlen=STRIKES)
        strikes.append(now)
        _renew(self._strikes, conviction.caller, strikes)

    def check(self, spec: ImageSpec, inputs: ImageInputs, caller: Caller, now: float) -> None:
        """Return if the image may run.

        Raises `ImageKillsReplica`, or `RateLimited` if several images of the caller did.
        """
        if not self._times:
            return
        convicted = self._times.get(_fingerprint(spec, inputs))
        if convicted is not None and now - convicted < REFUSED_S:
            raise image_kills_replica()
        strikes = self._strikes.get(caller.name)
        if strikes and len(strikes) == STRIKES and strikes[-1] - strikes[0] < STRIKES_S:
            left = strikes[-1] + REFUSED_S - now
            if left > 0:
                raise RateLimited(
                    left, "several of your images ended the process that worked on them"
                )


def image_kills_replica() -> ImageKillsReplica:
    """Return the error of a convicted image."""
    return ImageKillsReplica(
        "this image ends the process that works on it",
        remedy="Change the request; the service refuses this one for ten minutes",
    )


def _renew(known: dict[str, V], key: str, value: V) -> None:
    """Set an entry and make it the last to be forgotten."""
    known.pop(key, None)
    known[key] = value
    while len(known) > MAX_KEPT:
        del known[next(iter(known))]


def _fingerprint(spec: ImageSpec, inputs: ImageInputs) -> str:
    """Return what is equal for two requests of the same image."""
    digest = sha256(repr(spec).encode())
    digest.update(inputs.init_image or b"")
    return digest.hexdigest()
