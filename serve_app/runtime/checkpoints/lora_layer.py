"""The change of one layer in a LoRA file, by the names and shapes of its tensors. No torch.

Every kind that can be loaded becomes a product of two matrices, up (out, rank) and down (rank, in),
to which a LoRA is equal; a convolution's kernel counts to `in`. The ranks:

- LoRA (Hu et al. 2021): its own. With a middle tensor (LyCORIS's LoCon, Tucker) too: the middle is
  multiplied into down.
- LoHa (Hyeon-Woo et al. 2022): the elementwise product of two products of rank r has rank r * r.
- LoKr (Yeh et al. 2024): the Kronecker product of matrices of ranks r and s has rank r * s.
- A whole difference: one of the two matrices is the identity.

A LoHa or LoKr whose rank would exceed the smaller side of the layer becomes a difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.lora_names import TensorName
from serve_app.runtime.checkpoints.model_layers import Shape

LORA, LOHA, LOKR, DIFFERENCE = "LoRA", "LoHa", "LoKr", "whole difference"

_KINDS = (  # and the parts that tell them; the first one that has all it needs counts
    (LORA, "down", "up"),
    (LOHA, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    (LOKR, "lokr_w1", "lokr_w2"),
    (LOKR, "lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    (LOKR, "lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    (LOKR, "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    (DIFFERENCE, "diff"),
)
_OPTIONAL = {  # further parts of a kind
    LORA: {"mid"},
    LOHA: {"hada_t1", "hada_t2"},
    LOKR: {"lokr_t2"},
    DIFFERENCE: set[str](),
}
_OF_ALL = {"alpha", "magnitude", "bias"}
_KIND_OF_PART = {part: kind for kind, *parts in _KINDS for part in parts}


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The change of one layer; `size` is out and in of the weight, with the kernel in `in`."""

    name: TensorName
    kind: str
    tensors: Mapping[str, str]  # full names by part
    shapes: Mapping[str, Shape]  # by part
    size: tuple[int, int]
    rank: int  # of the product as it is attached

    @property
    def alpha_rank(self) -> int | None:
        """The rank that an alpha is divided by; None where alpha does not count."""
        if self.kind == LORA:
            return self.rank
        factors = ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")
        return next((self.shapes[part][0] for part in factors if part in self.shapes), None)

    @property
    def num_parameters(self) -> int:
        """The numbers that it takes when it is attached."""
        vectors = len({"magnitude", "bias"} & self.shapes.keys())
        return self.rank * sum(self.size) + vectors * self.size[0]


def read_layer(
    name: TensorName, tensors: Mapping[str, str], shapes: Mapping[str, Shape]
) -> LoraLayer:
    """Return the change that the tensors of one layer make.

    `tensors` and `shapes` are by part. Raises `CheckpointError` that names the layer when a part is
    missing, or the shapes of two do not go together.
    """
    parts = set(shapes)
    kind = next((kind for kind, *needed in _KINDS if set(needed) <= parts), None)
    if kind is None:
        raise CheckpointError(_incomplete(name, parts))
    needed = next(set(needed) for k, *needed in _KINDS if k == kind and set(needed) <= parts)
    if surplus := sorted(parts - needed - _OPTIONAL[kind] - _OF_ALL):
        raise CheckpointError(f"has a {kind} in {name.stem}, with {', '.join(surplus)} beside it")
    try:
        size, rank = _SIZES[kind](shapes)
    except (ValueError, IndexError):
        written = ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))
        raise CheckpointError(
            f"has a {kind} in {name.stem} whose shapes don't go together: {written}"
        ) from None
    if (num := prod(shapes.get("magnitude", (size[0],)))) != size[0]:
        raise CheckpointError(
            f"has a DoRA of {num} magnitudes in {name.stem}; only those of the {size[0]} outputs "
            "can be loaded"
        )
    if prod(shapes.get("bias", (size[0],))) != size[0]:
        raise CheckpointError(f"has a bias of another size than the layer in {name.stem}")
    if {"bias", "magnitude"} <= parts:
        raise CheckpointError(f"has a DoRA with a bias in {name.stem}, which can't be loaded")
    rank = rank if kind == LORA else min(rank, *size)
    return LoraLayer(name, kind, tensors, shapes, size, rank)


def _incomplete(name: TensorName, parts: set[str]) -> str:
    for kind, *needed in _KINDS:
        if parts & set(needed):
            missing = " and ".join(part for part in needed if part not in parts)
            return f"has half a {kind} in {name.stem}: it lacks {missing}"
    return f"has {' and '.join(sorted(parts))} in {name.stem}, and no change of its weights"


def _lora_size(shapes: Mapping[str, Shape]) -> tuple[tuple[int, int], int]:
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    rank = up[1]
    kernel = prod(down[2:])
    if mid is not None:
        if mid[:2] != (rank, down[0]):
            raise ValueError
        kernel = prod(mid[2:])
    elif down[0] != rank:
        raise ValueError
    if prod(up[2:]) != 1:
        raise ValueError
    return (up[0], down[1] * kernel), rank


def _loha_size(shapes: Mapping[str, Shape]) -> tuple[tuple[int, int], int]:
    a, b = (_product_size(shapes, f"hada_w{n}", shapes.get(f"hada_t{n}")) for n in (1, 2))
    if a != b:
        raise ValueError
    return a, shapes["hada_w1_b"][0] * shapes["hada_w2_b"][0]


def _lokr_size(shapes: Mapping[str, Shape]) -> tuple[tuple[int, int], int]:
    sizes, ranks = [], []
    for number in (1, 2):
        name = f"lokr_w{number}"
        if name in shapes:
            size = _flat(shapes[name])
            ranks.append(min(size))
        else:
            size = _product_size(shapes, name, shapes.get(f"lokr_t{number}"))
            ranks.append(shapes[f"{name}_b"][0])
        sizes.append(size)
    (out_1, in_1), (out_2, in_2) = sizes
    return (out_1 * out_2, in_1 * in_2), prod(ranks)


def _difference_size(shapes: Mapping[str, Shape]) -> tuple[tuple[int, int], int]:
    size = _flat(shapes["diff"])
    return size, min(size)


_SIZES = {
    LORA: _lora_size,
    LOHA: _loha_size,
    LOKR: _lokr_size,
    DIFFERENCE: _difference_size,
}


def _product_size(shapes: Mapping[str, Shape], name: str, core: Shape | None) -> tuple[int, int]:
    """Return the size of the product of two tensors, or of three with a Tucker core between."""
    a, b = shapes[f"{name}_a"], shapes[f"{name}_b"]
    if core is None:
        if a[1] != b[0]:
            raise ValueError
        return a[0], prod(b[1:])
    if core[:2] != (a[0], b[0]):
        raise ValueError
    return a[1], b[1] * prod(core[2:])


def _flat(shape: Shape) -> tuple[int, int]:
    if len(shape) < 2:
        raise ValueError
    return shape[0], prod(shape[1:])
