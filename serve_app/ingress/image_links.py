"""Links to images of a job, for clients that fetch an address instead of reading base64.

A link needs no key: it is signed for one image and for as long as the job's result is kept
(HMAC, RFC 2104, with SHA-256), by a secret that the ledger has.
"""

import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal
from urllib.parse import urlencode

from serve_app.core.service.job_errors import JobNotFound
from serve_app.ingress.contracts import Ledger

LINKS = "/images/"  # what the path of every link begins with
LIFETIME_S = 600.0  # as long as a result is kept
ImageFormat = Literal["png", "jpeg", "webp"]
_SECRET = "image links"
_SECRET_S = 60.0  # that it is used without asking again: a ledger that was lost has another one
_NO_LINK = "this link is wrong, or has expired: an image is kept for ten minutes"


@dataclass(frozen=True, slots=True)
class LinkedImage:
    """What a link is of: an image of a job, as a file of a format, until some time."""

    job: str
    number: int
    format: ImageFormat
    quality: int  # of JPEG and WebP
    expires: int  # seconds since the epoch


class ImageLinks:
    """Makes links, and checks those that come back. All ingress processes have the same secret."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._clock = clock
        self._secret: bytes | None = None
        self._secret_time = 0.0

    async def path(self, job: str, number: int, format: ImageFormat, quality: int) -> str:
        """Return the path of a link, with its query. Raises `LedgerAway`."""
        expires = int(self._clock() + LIFETIME_S)
        image = LinkedImage(job, number, format, quality, expires)
        query = {"quality": quality, "expires": expires, "signature": await self._sign(image)}
        return f"{LINKS}{job}/{number}.{format}?{urlencode(query)}"

    async def check(self, image: LinkedImage, signature: str) -> None:
        """Raise `JobNotFound` unless a link is ours and has not expired."""
        right = hmac.compare_digest(await self._sign(image), signature.encode())
        if not right or image.expires < self._clock():
            raise JobNotFound(_NO_LINK)

    async def _sign(self, image: LinkedImage) -> bytes:
        if self._secret is None or self._clock() - self._secret_time > _SECRET_S:
            self._secret, self._secret_time = await self._ledger.secret(_SECRET), self._clock()
        fields = (image.job, image.number, image.format, image.quality, image.expires)
        text = "\n".join(map(str, fields))
        return urlsafe_b64encode(hmac.digest(self._secret, text.encode(), sha256)).rstrip(b"=")
