"""The requests of a benchmark: the same ones, in the same order, for every system."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from random import Random

GUIDANCE = 6.9
_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "star", "heart")


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One requested image, of the demo checkpoint."""

    prompt: str
    seed: int
    steps: int
    width: int
    height: int
    lora: str | None = None  # a name in `Workload.loras`

    @property
    def kind(self) -> tuple[int, int, int, str | None]:
        """What the stock pipeline can't mix in one call."""
        return self.steps, self.width, self.height, self.lora


@dataclass(frozen=True, slots=True)
class Workload:
    """What is requested: each value as often as it is in its tuple."""

    steps: Sequence[int] = (4, 20, 30, 50)
    sizes: Sequence[tuple[int, int]] = ((128, 128),)
    loras: Sequence[str | None] = (None,)

    @property
    def kinds(self) -> int:
        """How many kinds of request there are."""
        return len(self.steps) * len(self.sizes) * len(self.loras)

    def draw(self, count: int, seed: int) -> list[ImageRequest]:
        """Return requests in random order, with each combination equally often, as far as possible.

        So rounds differ in order and pictures, and not in work.
        """
        kinds = product(self.loras, self.sizes, self.steps)
        chosen, rng = list(islice(cycle(kinds), count)), Random(seed)
        rng.shuffle(chosen)
        return [
            ImageRequest(
                f"a {rng.choice(_COLOURS)} {rng.choice(_SHAPES)}",
                rng.randrange(2**32),
                steps,
                *size,
                lora,
            )
            for lora, size, steps in chosen
        ]
