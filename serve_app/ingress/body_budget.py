"""`BodyBudget`: the bytes that requests may have in memory: their bodies, and the decoded images.

A body is counted while it is read. What its files unfold to is counted from before they are decoded
until the job has ended that needs them, which may be long after the body is gone: a few KiB of flat
colour may be megabytes of pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from serve_app.core.errors import Overloaded
from serve_app.ingress.http_errors import PayloadTooLarge

_SMALL = 2**18  # bytes of a body that is read whatever the others take


class BodyBudget:
    """The bytes of all requests in memory, of which each request takes its share.

    `send_away` returns the Retry-After of a caller who is refused, in seconds.
    """

    def __init__(
        self, max_body_bytes: int, max_open_bytes: int, send_away: Callable[[str], int]
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_open_bytes = max_open_bytes
        self.bytes = 0  # that are counted; only shares change it
        self.send_away = send_away

    @contextmanager
    def open_share(self, caller: str) -> Iterator["BodyShare"]:
        """Yield the share of one request; give back at the end what no job holds."""
        share = BodyShare(self, caller)
        try:
            yield share
        finally:
            share.close()


class BodyShare:
    """The bytes of one request in memory: of its body, and of the images in it once decoded."""

    def __init__(self, budget: BodyBudget, caller: str) -> None:
        self._budget = budget
        self._caller = caller
        self._body = 0
        self._images = 0

    def announce(self, number: int) -> None:
        """Return if a body of so many bytes may be read.

        Raises `PayloadTooLarge` if it never may, `Overloaded` if it may when others are done.
        """
        self._check_body(number, more=number)

    def add(self, number: int) -> None:
        """Count bytes of the body that were read; raise what `announce` raises, none counted."""
        self._body += number
        self._budget.bytes += number
        try:
            self._check_body(self._body)
        except (PayloadTooLarge, Overloaded):
            self.release()
            raise

    def add_image(self, number: int) -> None:
        """Count the bytes that a file is about to be decoded to, at the most.

        Raises `Overloaded`, with none counted, if others leave too little room. A request that is
        alone may take more: it would never find room.
        """
        budget = self._budget
        is_alone = budget.bytes == self._body + self._images
        if budget.bytes + number > budget.max_open_bytes and not is_alone:
            raise self._refusal("too many input images wait")
        self._images += number
        budget.bytes += number

    def give_back(self, number: int) -> None:
        """Count so many bytes of images less, which came out smaller than they might have."""
        self._images -= number
        self._budget.bytes -= number

    def release(self) -> None:
        """Give back the bytes of the body: its files have been read."""
        self._budget.bytes -= self._body
        self._body = 0

    def hold_images(self) -> Callable[[], None]:
        """Keep the bytes of the images beyond the request; return what gives them back, once."""
        images, self._images = self._images, 0
        return partial(self._give_back_held, images)

    def close(self) -> None:
        """Give back all bytes that are not held."""
        self.release()
        self.give_back(self._images)

    def _give_back_held(self, images: int) -> None:
        self._budget.bytes -= images

    def _check_body(self, number: int, more: int = 0) -> None:
        budget = self._budget
        if number > budget.max_body_bytes:
            raise PayloadTooLarge(budget.max_body_bytes)
        if number > _SMALL and budget.bytes + more > budget.max_open_bytes:
            raise self._refusal("too many large request bodies are open")

    def _refusal(self, problem: str) -> Overloaded:
        return Overloaded(problem, retry_after=self._budget.send_away(self._caller))
