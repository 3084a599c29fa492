"""Tensors that a network needs: their names and shapes, as plain values. No torch.

A module has a tensor under one name. Files have it under that name or another: that of the layout
in which SDXL was published, or of an older library. `Source` is one such name, with what has to be
done to the stored values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

Shape = tuple[int, ...]


class View(StrEnum):
    """How the stored values become a module's."""

    SAME = "same"
    TRANSPOSED = "transposed"
    FLATTENED = "flattened"  # a linear layer that may be stored as a 1 x 1 convolution
    FIRST_THIRD = "first third"  # of the rows: query, key and value are stored as one tensor
    SECOND_THIRD = "second third"
    LAST_THIRD = "last third"


THIRDS = (View.FIRST_THIRD, View.SECOND_THIRD, View.LAST_THIRD)


@dataclass(frozen=True, slots=True)
class Source:
    """A name under which files may have a tensor."""

    name: str
    view: View = View.SAME

    def fits(self, stored: Shape, shape: Shape) -> bool:
        """Return whether stored values of a shape become a tensor of another."""
        return shape in (stored, self.viewed(stored))

    def viewed(self, stored: Shape) -> Shape:
        """Return the shape that stored values have as the module's."""
        if self.view is View.TRANSPOSED:
            return stored[::-1]
        if self.view is View.FLATTENED:
            return stored[:2] if set(stored[2:]) <= {1} else stored
        if self.view in THIRDS and stored and stored[0] % 3 == 0:
            return (stored[0] // 3, *stored[1:])
        return stored


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a module: its name there, its shape, and its names in files."""

    name: str
    shape: Shape
    sources: tuple[Source, ...]


Tensors = Iterator[tuple[str, str, Shape]]  # name in diffusers, name as published, shape


def linear(name: str, published: str, inputs: int, outputs: int, *, bias: bool = True) -> Tensors:
    """Yield the tensors of a linear layer."""
    yield f"{name}.weight", f"{published}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", f"{published}.bias", (outputs,)


def conv(name: str, published: str, inputs: int, outputs: int, kernel: int = 3) -> Tensors:
    """Yield the tensors of a square two-dimensional convolution."""
    yield f"{name}.weight", f"{published}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", f"{published}.bias", (outputs,)


def norm(name: str, published: str, channels: int) -> Tensors:
    """Yield the tensors of a group or layer normalization."""
    yield f"{name}.weight", f"{published}.weight", (channels,)
    yield f"{name}.bias", f"{published}.bias", (channels,)
