"""`BodyBudget`: the bytes that requests may have in memory: their bodies, and the decoded images.

A body is counted while it is read. What its files unfold to is counted from before they are decoded
until the job has ended that needs them, which may be long after the body is gone: a few KiB of flat
colour may be megabytes of pixels.

Both are shared by callers as open requests are (`has_room`), so that one caller's images leave room
for everybody else's. Images never take the part that is for bodies: these come and go, while images
may wait as long as the queue is.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import total
from serve_app.core.capacity.open_requests import has_room
from serve_app.core.errors import Overloaded
from serve_app.ingress.http_errors import PayloadTooLarge

_SMALL = 2**18  # bytes of a body that is read whatever the others take
_BODIES = 4  # one byte of so many is for bodies alone


class BodyBudget:
    """The bytes of all requests in memory, by caller, of which each request takes its share.

    `send_away` returns the Retry-After of a caller who is refused, in seconds.
    """

    def __init__(
        self, max_body_bytes: int, max_open_bytes: int, send_away: Callable[[Caller], int]
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_open_bytes = max_open_bytes
        # The part for bodies has room for the longest one, unless that is most of everything.
        self.bodies_part = max(max_open_bytes // _BODIES, min(max_body_bytes, max_open_bytes // 2))
        self.bodies: Counter[Caller] = Counter()  # bytes; only shares change these two
        self.images: Counter[Caller] = Counter()
        self.send_away = send_away

    @property
    def bytes(self) -> int:
        """The bytes that are counted."""
        return self.bodies.total() + self.images.total()

    @contextmanager
    def open_share(self, caller: Caller) -> Iterator["BodyShare"]:
        """Yield the share of one request; give back at the end what no job holds."""
        share = BodyShare(self, caller)
        try:
            yield share
        finally:
            share.close()


class BodyShare:
    """The bytes of one request in memory: of its body, and of the images in it once decoded."""

    def __init__(self, budget: BodyBudget, caller: Caller) -> None:
        self._budget = budget
        self._caller = caller
        self._body = 0
        self._images = 0

    def announce(self, number: int) -> None:
        """Return if a body of so many bytes may be read.

        Raises `PayloadTooLarge` if it never may, `Overloaded` if it may when others are done.
        """
        self._check_body(number)

    def add(self, number: int) -> None:
        """Count bytes of the body that were read; raise what `announce` raises, none counted."""
        try:
            self._check_body(self._body + number)
        except (PayloadTooLarge, Overloaded):
            self.release()
            raise
        self._body += number
        _add(self._budget.bodies, self._caller, number)

    def add_image(self, number: int) -> None:
        """Count the bytes that a file is about to be decoded to, at the most.

        Raises `Overloaded`, with none counted, if others leave too little room. A request that is
        alone may take more: it would never find room.
        """
        budget, own = self._budget, self._images
        is_alone = budget.bytes == self._body + own
        images = _without(budget.images, self._caller, own)
        images_part = budget.max_open_bytes - budget.bodies_part
        everything = _without(total(budget.bodies, images), self._caller, self._body)
        has_place = has_room(images, self._caller, images_part, own + number) and has_room(
            everything, self._caller, budget.max_open_bytes, own + number + self._body
        )
        if not has_place and not is_alone:
            raise self._refusal("too many input images wait")
        self._images += number
        _add(budget.images, self._caller, number)

    def give_back(self, number: int) -> None:
        """Count so many bytes of images less, which came out smaller than they might have."""
        self._images -= number
        self._give_back_images(number)

    def release(self) -> None:
        """Give back the bytes of the body: its files have been read."""
        _add(self._budget.bodies, self._caller, -self._body)
        self._body = 0

    def hold_images(self) -> Callable[[], None]:
        """Keep the bytes of the images beyond the request; return what gives them back, once."""
        images, self._images = self._images, 0
        return partial(self._give_back_images, images)

    def close(self) -> None:
        """Give back all bytes that are not held."""
        self.release()
        self.give_back(self._images)

    def _give_back_images(self, number: int) -> None:
        _add(self._budget.images, self._caller, -number)

    def _check_body(self, number: int) -> None:
        """Raise what `announce` raises if the body, as a whole, may not have so many bytes."""
        budget = self._budget
        if number > budget.max_body_bytes:
            raise PayloadTooLarge(budget.max_body_bytes)
        others = _without(budget.bodies, self._caller, self._body) if number > _SMALL else {}
        limit = max(budget.bodies_part, budget.max_open_bytes - budget.images.total())
        if number > _SMALL and not has_room(others, self._caller, limit, number):
            raise self._refusal("too many large request bodies are open")

    def _refusal(self, problem: str) -> Overloaded:
        return Overloaded(problem, retry_after=self._budget.send_away(self._caller))


def _add(amounts: Counter[Caller], caller: Caller, number: int) -> None:
    amounts[caller] += number
    if not amounts[caller]:
        del amounts[caller]


def _without(amounts: Mapping[Caller, float], caller: Caller, number: float) -> dict[Caller, float]:
    """Return the amounts without one request's part of a caller's."""
    others = dict(amounts)
    others[caller] = others.get(caller, 0) - number
    return others
