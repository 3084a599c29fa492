"""`Quarantine`: which samples of a scheduler must run alone, one after the other. No clock."""


class Quarantine:
    """Samples in the order in which they came. The scheduler is the only writer."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}  # by id: the step index that ends it

    def __contains__(self, id: str) -> bool:
        return id in self._ends

    @property
    def current(self) -> str | None:
        """The sample whose turn it is to run alone."""
        return next(iter(self._ends), None)

    def blocks(self, id: str) -> bool:
        """Return whether a sample must wait until another one has run alone."""
        return id in self._ends and id != self.current

    def add(self, id: str, end: int) -> None:
        """Let a sample run alone until its step index is `end`."""
        self._ends[id] = end

    def settle(self, id: str, index: int) -> None:
        """Let a sample go that has come to the end of its quarantine."""
        if index >= self._ends.get(id, index + 1):
            self.remove(id)

    def remove(self, id: str) -> None:
        """Let a sample go, if it is one of them."""
        self._ends.pop(id, None)
