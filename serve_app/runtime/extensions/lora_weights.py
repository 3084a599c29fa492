"""The numbers of a LoRA file, as two matrices for each layer: see `checkpoints.lora_layer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from safetensors.torch import load_file

from serve_app.runtime.checkpoints.lora_file import LoraFile, PlacedLayer
from serve_app.runtime.checkpoints.lora_layer import LOHA, LOKR, LORA, LoraLayer
from serve_app.runtime.networks.finite import check_finite

_Parts = Mapping[str, torch.Tensor]  # the tensors of a layer
_Pair = tuple[torch.Tensor, torch.Tensor]  # up and down


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """What a layer adds to its output: weight * alpha / rank * up(down(x)), on the CPU."""

    up: torch.Tensor  # (out, rank)
    down: torch.Tensor  # (rank, in), with a convolution's kernel in `in`
    alpha: float
    magnitude: torch.Tensor | None  # (out,): DoRA's lengths of the rows of the changed weight
    bias: torch.Tensor | None  # (out,): scaled as the product is

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.down.shape[0]


def read_weights(file: LoraFile, places: Sequence[PlacedLayer]) -> list[LayerWeights]:
    """Return the weights of each of a file's placed layers.

    One alpha for a whole file remains a factor, as in diffusers. Of several, and of those that
    diffusers does not know, alpha / rank is multiplied into `up`, in fp32. Raises
    `WeightsNotFinite` that names the tensor.
    """
    tensors = read_tensors(file)
    parts = [
        {part: tensors[name] for part, name in place.change.tensors.items()} for place in places
    ]
    alphas = {float(part["alpha"]) for part in parts if "alpha" in part}
    is_kohya = all(place.change.name.stem.startswith("lora_") for place in places)
    is_factor = len(alphas) < 2 and (is_kohya or not alphas)
    return [
        _layer_weights(file, place, tensors, is_factor=is_factor)
        for place, tensors in zip(places, parts, strict=True)
    ]


def read_tensors(file: LoraFile) -> dict[str, torch.Tensor]:
    """Return all tensors of a file. Raises `WeightsNotFinite` that names the first bad one."""
    tensors: dict[str, torch.Tensor] = load_file(file.path)
    for name, tensor in tensors.items():
        check_finite(tensor, name, file.path.name)
    return tensors


def _layer_weights(
    file: LoraFile, place: PlacedLayer, parts: _Parts, *, is_factor: bool
) -> LayerWeights:
    change = place.change
    (up, down), (alpha, divisor) = _pair(change, parts), _scale(file, place, parts)
    bias, magnitude = parts.get("bias"), parts.get("magnitude")
    if change.kind == LORA and is_factor:
        alpha *= change.rank / divisor
    else:
        scale, alpha = alpha / divisor, float(change.rank)
        up = up.float() * scale
        bias = None if bias is None else bias.float() * scale
    return LayerWeights(
        up,
        down,
        alpha,
        None if magnitude is None else magnitude.flatten(),
        None if bias is None else bias.flatten(),
    )


def _scale(file: LoraFile, place: PlacedLayer, parts: _Parts) -> tuple[float, float]:
    """Return a layer's alpha and what it is divided by; their quotient is 1 without an alpha."""
    rank, config = place.change.alpha_rank, file.configs.get(place.network)
    if rank is None:
        return 1.0, 1.0
    if "alpha" in parts:
        return float(parts["alpha"]), float(rank)
    if config is None:
        return float(rank), float(rank)
    return config.alpha_of(place.layer), sqrt(rank) if config.use_rslora else float(rank)


def _pair(change: LoraLayer, parts: _Parts) -> _Pair:
    """Return up and down of a layer's change before it is scaled."""
    if change.kind == LORA and "mid" not in parts:
        return parts["up"].flatten(1), parts["down"].flatten(1)
    exact = {name: tensor.float() for name, tensor in parts.items()}
    if change.kind == LORA:
        down = torch.einsum("rs...,si->ri...", exact["mid"], exact["down"].flatten(1))
        return exact["up"].flatten(1), down.flatten(1)
    if change.kind == LOHA:
        return _loha_pair(change, exact)
    if change.kind == LOKR:
        return _lokr_pair(change, exact)
    return _pair_of(exact["diff"].flatten(1))


def _loha_pair(change: LoraLayer, parts: _Parts) -> _Pair:
    """Return the pair of (w1_a w1_b) * (w2_a w2_b): column i, j of up is that of both factors."""
    names = (("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"))
    (up_1, down_1), (up_2, down_2) = (_factors(parts, *triple) for triple in names)
    rank = len(down_1) * len(down_2)
    if rank != change.rank:
        return _pair_of((up_1 @ down_1) * (up_2 @ down_2))
    up = (up_1[:, :, None] * up_2[:, None, :]).reshape(-1, rank)
    return up, (down_1[:, None, :] * down_2[None, :, :]).reshape(rank, -1)


def _lokr_pair(change: LoraLayer, parts: _Parts) -> _Pair:
    """Return the pair of kron(w1, w2), which is that of the pairs of both."""
    pairs = [
        _pair_of(parts[whole].flatten(1)) if whole in parts else _factors(parts, *triple)
        for whole, *triple in (
            ("lokr_w1", "lokr_w1_a", "lokr_w1_b", ""),
            ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        )
    ]
    (up_1, down_1), (up_2, down_2) = pairs
    if len(down_1) * len(down_2) != change.rank:
        return _pair_of(torch.kron(up_1 @ down_1, up_2 @ down_2))
    return torch.kron(up_1, up_2), torch.kron(down_1, down_2)


def _factors(parts: _Parts, a: str, b: str, core: str) -> _Pair:
    """Return two factors of a low-rank product; a Tucker core is multiplied into the second."""
    if core not in parts:
        return parts[a], parts[b].flatten(1)
    return parts[a].T, torch.einsum("ij...,jr->ir...", parts[core], parts[b]).flatten(1)


def _pair_of(matrix: torch.Tensor) -> _Pair:
    """Return a matrix as a product with the smaller identity."""
    out, within = matrix.shape
    if out <= within:
        return torch.eye(out), matrix
    return matrix, torch.eye(within)
