"""Changes of LoRA's kin, each with the difference that its paper, or LyCORIS, defines."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.lora_files import kohya_stem, weights_of

Parts = dict[str, torch.Tensor]
Change = tuple[Parts, torch.Tensor]  # the tensors of a layer, and the difference they make
Maker = Callable[[Sequence[int], Callable[..., torch.Tensor]], Change]
RANK, ALPHA = 2, 3.0


def lora(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    down, up = draw(RANK, *shape[1:]), draw(shape[0], RANK, *[1] * (len(shape) - 2))
    difference = (up.flatten(1) @ down.flatten(1)).reshape(*shape)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
    return parts, difference * ALPHA / RANK


def locon_tucker(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    out, within, *kernel = shape
    down, up = draw(RANK, within, 1, 1), draw(out, RANK, 1, 1)
    mid = draw(RANK, RANK, *kernel)
    difference = torch.einsum("or,rs...,si->oi...", up.flatten(1), mid, down.flatten(1))
    parts = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}
    return parts, difference


def loha(shape: Sequence[int], draw: Callable[..., torch.Tensor], rank: int = RANK) -> Change:
    flat = torch.Size(shape)[1:].numel()
    a, b, c, d = draw(shape[0], rank), draw(rank, flat), draw(shape[0], rank), draw(rank, flat)
    difference = ((a @ b) * (c @ d)).reshape(*shape) * ALPHA / rank
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, (a, b, c, d), strict=True)) | {"alpha": torch.tensor(ALPHA)}, difference


def loha_of_high_rank(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    return loha(shape, draw, rank=12)


def loha_tucker(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    out, within, *kernel = shape
    parts: Parts = {}
    product = torch.ones(*shape)
    for number in (1, 2):
        core, a, b = draw(RANK, RANK, *kernel), draw(RANK, out), draw(RANK, within)
        product = product * torch.einsum("ij...,io,jr->or...", core, a, b)
        parts |= {f"hada_t{number}": core, f"hada_w{number}_a": a, f"hada_w{number}_b": b}
    return parts | {"alpha": torch.tensor(ALPHA)}, product * ALPHA / RANK


def lokr(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    out, within, *kernel = shape
    w1 = draw(4, 4)
    a, b = draw(out // 4, RANK), draw(RANK, within // 4, *kernel)
    w2 = (a @ b.flatten(1)).reshape(out // 4, within // 4, *kernel)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(ALPHA)}
    return parts, _kron(w1, w2) * ALPHA / RANK


def lokr_of_both(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    a, b = draw(8, 1), draw(1, 8)
    c, d = draw(shape[0] // 8, 1), draw(1, shape[1] // 8)
    parts = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d}
    return parts | {"alpha": torch.tensor(ALPHA)}, torch.kron(a @ b, c @ d) * ALPHA


def lokr_whole(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    """Alpha does not count: LyCORIS has no rank to divide it by."""
    out, within, *kernel = shape
    w1, w2 = draw(2, 2), draw(out // 2, within // 2, *kernel)
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(ALPHA)}, _kron(w1, w2)


def difference(shape: Sequence[int], draw: Callable[..., torch.Tensor]) -> Change:
    values = draw(*shape)
    return {"diff": values}, values


LINEAR: Mapping[str, Maker] = {
    "LoRA": lora,
    "LoHa": loha,
    "LoHa of high rank": loha_of_high_rank,
    "LoKr": lokr,
    "LoKr of two products": lokr_of_both,
    "LoKr of whole matrices": lokr_whole,
    "difference": difference,
}
CONVOLUTIONAL: Mapping[str, Maker] = {
    "LoCon": lora,
    "LoCon, Tucker": locon_tucker,
    "LoHa": loha,
    "LoHa, Tucker": loha_tucker,
    "LoKr": lokr,
    "LoKr of whole matrices": lokr_whole,
    "difference": difference,
}


def lycoris_file(
    folder: Path, file: Path, layers: Sequence[str], makers: Sequence[Maker], by: float = 0.05
) -> dict[str, torch.Tensor]:
    """Write changes of the UNet's `layers`, of each kind in turn; return their differences.

    Every difference is `by` times as long as the layer's weight would be at initialisation.
    """
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    differences = {}
    turns = cycle(makers)
    for layer, shape in weights_of(folder, "unet", layers):

        def draw(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator)

        parts, change = next(turns)(shape, draw)
        first = next(
            iter(set(parts) & {"lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff"})
        )
        factor = by / float(change.std()) / change[0].numel() ** 0.5
        parts[first] = parts[first] * factor
        differences[layer] = change * factor
        stem = kohya_stem("unet", layer)
        tensors |= {f"{stem}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, file)
    return differences


def _kron(small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    return torch.kron(small.reshape(*small.shape, *[1] * (large.dim() - 2)), large.contiguous())
