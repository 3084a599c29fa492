"""Row layers: those that change a row's bits with the number of rows compute one row after another.

A matrix product chooses its kernel by the number of lines, so linear layers with one line per row
(the embeddings of noise level and size, and their projections in each block) differ, while those
of many lines don't. On a CPU torch splits an activation over threads in parts that need be no
multiple of a vector, and computes what is left at a part's end by other instructions. A group norm
with channels last it splits by pixels once there are 1024, and adds up each thread's sums. Computed
alone, a row has one result. `aura doctor --invariance` says which operators differ on a machine.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.quiet import diffusers

_GEGLU = diffusers.models.activations.GEGLU
_ALIGNMENT = 64  # bytes
_SINGLE_LINES = ("time_embedding.", "add_embedding.", ".time_emb_proj")
_SPLIT_PIXELS = 1024  # from which on torch splits a group norm with channels last by pixels


class RowLinear(nn.Linear):
    """`torch.nn.Linear` whose result for a row has the same bits beside any number of others."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (rows, out_features) for (rows, in_features)."""
        # Copies, since kernels choose by alignment too: see `aligned`.
        rows = [functional.linear(row.clone(), self.weight, self.bias) for row in input.split(1)]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


class RowGroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, likewise."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (rows, channels, height, width) for an input of that shape."""
        if input.is_contiguous() or input.shape[2:].numel() < _SPLIT_PIXELS:
            return super().forward(input)
        return torch.cat([super(RowGroupNorm, self).forward(row) for row in input.split(1)])


class RowSiLU(nn.SiLU):
    """`torch.nn.SiLU`, likewise."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the input's shape, (rows, ...)."""
        return _by_row(torch.ops.aten.silu.out, input)


class RowGEGLU(_GEGLU):  # type: ignore[misc, valid-type]  # diffusers has no types
    """diffusers' GEGLU, likewise."""

    def gelu(self, gate: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the gate's shape, (rows, tokens, features)."""
        return _by_row(torch.ops.aten.gelu.out, gate)


def _by_row(activation: Callable[..., torch.Tensor], input: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(input)
    for row, into in zip(input.unbind(), result.unbind(), strict=True):
        activation(row, out=into)
    return result


def compute_by_row(unet: nn.Module, device: Device) -> None:
    """Let the layers of diffusers' `UNet2DConditionModel` compute by row that must on a device."""
    splits = device.torch_device.type == "cpu" and device.cpu_threads > 1
    for name, module in unet.named_modules():
        if any(part in f"{name}." for part in _SINGLE_LINES):
            become_row_linear(module)
        elif type(module) is nn.GroupNorm:
            module.__class__ = RowGroupNorm
        elif type(module) is _GEGLU and splits:
            module.__class__ = RowGEGLU
        if type(module) is nn.SiLU and splits:
            module.__class__ = RowSiLU


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
