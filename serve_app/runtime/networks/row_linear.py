"""`RowLinear`: a linear layer that computes its rows one after the other.

A matrix product chooses its kernel by the number of lines. Layers whose input has one line per row
(the embeddings of noise level and size, and their projections in each block) so change a row's bits
with the number of rows, while those of many lines per row don't. A row at a time they cost as much.
"""

import torch
from torch import nn
from torch.nn import functional

_ALIGNMENT = 64  # bytes
_SINGLE_LINES = ("time_embedding.", "add_embedding.", ".time_emb_proj")


class RowLinear(nn.Linear):
    """`torch.nn.Linear` whose result for a row has the same bits beside any number of others."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (rows, out_features) for (rows, in_features)."""
        # Copies, since kernels choose by alignment too: see `aligned`.
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
        for parameter in layer.parameters():
            parameter.data = aligned(parameter.data)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy that begins where torch's own allocator would let it begin.

    A product of one row adds up in another order from elsewhere on, so that equal weights would
    give other bits where a file's header has another length.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
