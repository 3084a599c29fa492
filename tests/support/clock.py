"""`Clock`: a clock that a test turns."""


class Clock:
    """Returns the time that was set last."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now
