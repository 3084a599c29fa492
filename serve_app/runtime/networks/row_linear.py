"""`RowLinear`: a linear layer that computes its rows one after the other.

A matrix product chooses its kernel by the number of lines. Layers whose input has one line per row
(the embeddings of noise level and size, and their projections in each block) so change a row's bits
with the number of rows, while those of many lines per row don't. A row at a time they cost as much.
"""

import torch
from torch import nn
from torch.nn import functional

_SINGLE_LINES = ("time_embedding.", "add_embedding.", ".time_emb_proj")


class RowLinear(nn.Linear):
    """`torch.nn.Linear` whose result for a row has the same bits beside any number of others."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (rows, out_features) for (rows, in_features)."""
        # Copies, since kernels may choose by a row's alignment too.
        rows = [functional.linear(row.clone(), self.weight, self.bias) for row in input.split(1)]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def compute_by_row(unet: nn.Module) -> None:
    """Let the layers of diffusers' `UNet2DConditionModel` with one line per row compute by row."""
    for name, module in unet.named_modules():
        if any(part in f"{name}." for part in _SINGLE_LINES):
            become_row_linear(module)


def become_row_linear(layer: nn.Module) -> None:
    """Let a linear layer compute by row; any other module stays as it is."""
    if type(layer) is nn.Linear:
        layer.__class__ = RowLinear
