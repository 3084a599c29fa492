"""`Answer`: how a system answered one request."""

from dataclasses import dataclass

from serve_app.bench.serve.workload import ImageRequest

OK = "ok"
WRONG_PICTURE = "wrong picture"
TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a system answered one request.

    `outcome` is `OK` or a kind of error. `seconds` are those from the time at which the request was
    due to the end of the answer.
    """

    request: ImageRequest
    seconds: float
    outcome: str
    picture: bytes = b""  # PNG

    @property
    def is_ok(self) -> bool:
        """Whether it is the requested picture."""
        return self.outcome == OK
