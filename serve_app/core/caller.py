"""`Caller`: for whom an image is made, and how large that caller's share of the GPUs is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request: the name of a key or of an address, never the key.

    While several callers have work, each gets GPU time in proportion to its weight. A caller has no
    influence on bits: it is in no batch key and no metadata. Raises `ValueError` for a weight that
    is not positive.
    """

    name: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight must be positive and finite, got {self.weight}")


NO_CALLER = Caller()  # of images that nobody sent a request for, such as a replica's own
