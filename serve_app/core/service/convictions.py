"""`Convictions`: which images have killed replicas, and whose they were. No clock of its own.

What one ingress process learns it sends to the others. One that starts later learns the same way,
at the cost of two more replicas.
"""

from collections import deque
from dataclasses import dataclass, replace
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

    fingerprints: tuple[str, ...]  # two requests of the same image have one in common
    caller: str  # the name

    @classmethod
    def of(
        cls, spec: ImageSpec, inputs: ImageInputs, caller: Caller, *, has_drawn_seed: bool = False
    ) -> "Conviction":
        """Return the conviction of an image; `has_drawn_seed` as in `ImageTask`."""
        return cls(_fingerprints(spec, inputs, has_drawn_seed), caller.name)


class Convictions:
    """The convicted images of the last ten minutes, and the strikes of the last hour."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}  # of the last conviction, by the image's fingerprint
        self._strikes: dict[str, deque[float]] = {}  # times, by the caller's name

    def add(self, conviction: Conviction, now: float) -> None:
        """Take note of a conviction, by this process or by another one."""
        for fingerprint in conviction.fingerprints:
            _renew(self._times, fingerprint, now)
        strikes = self._strikes.get(conviction.caller) or deque(maxlen=STRIKES)
        strikes.append(now)
        _renew(self._strikes, conviction.caller, strikes)

    def check(
        self,
        spec: ImageSpec,
        inputs: ImageInputs,
        caller: Caller,
        now: float,
        *,
        has_drawn_seed: bool = False,
    ) -> None:
        """Return if the image may run; `has_drawn_seed` as in `ImageTask`.

        Raises `ImageKillsReplica`, or `RateLimited` if several images of the caller did.
        """
        if not self._times:
            return
        for fingerprint in _fingerprints(spec, inputs, has_drawn_seed):
            convicted = self._times.get(fingerprint)
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


def _fingerprints(spec: ImageSpec, inputs: ImageInputs, has_drawn_seed: bool) -> tuple[str, ...]:
    """Return what is equal for two requests of the same image.

    A request without a seed comes back with another one, and kills as surely, whoever sends it. If
    it names one, only that seed counts: after a false conviction the prompt has others.
    """
    exact = _digest(repr(spec), inputs)
    if not has_drawn_seed:
        return (exact,)
    return exact, _digest(f"any seed of {replace(spec, seed=0)!r}", inputs)


def _digest(text: str, inputs: ImageInputs) -> str:
    digest = sha256(text.encode())
    digest.update(inputs.init_image or b"")
    return digest.hexdigest()
