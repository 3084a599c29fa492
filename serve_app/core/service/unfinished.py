"""`Unfinished`: what became of the requests that a stop did not finish."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Requests that were accepted and not finished: kept in the spool, or lost."""

    spooled: int = 0
    lost: int = 0

    def __add__(self, other: "Unfinished") -> "Unfinished":
        return Unfinished(self.spooled + other.spooled, self.lost + other.lost)
