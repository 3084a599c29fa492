"""Copies of networks' tensors in pinned host memory.

Weights never change here, so a copy is made once. From then on, offloading costs nothing, and
restoring costs one copy to the device.
"""

import logging
from collections.abc import Iterator, Sequence

import torch

from serve_app.runtime.memory.device import Device, is_out_of_memory

logger = logging.getLogger("aura.memory")

# torch rounds pinned allocations up to a power of two: one allocation per tensor of SDXL would take
# a quarter more. Blocks of one size can also be reused for the next model.
_BLOCK_BYTES = 1 << 28
_ALIGNMENT = 64  # bytes at which each tensor begins


class PinnedCopies:
    """Parameters and buffers of networks with a copy of each, packed in blocks."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], device: Device, *, block_bytes: int = _BLOCK_BYTES
    ) -> None:
        self._device = device
        self._block_bytes = block_bytes
        self._can_pin = True
        contiguous = [tensor for tensor in tensors if tensor.is_contiguous()]
        self._copies = list(zip(contiguous, self._copy_all(contiguous), strict=True))

    def offload(self) -> None:
        """Point every tensor at its copy, which frees its memory on the device.

        Tensors that are not contiguous are left to `Module.to`.
        """
        for tensor, copy in self._copies:
            tensor.data = copy

    def restore(self) -> None:
        """Bring every tensor back to the device; the Parameter objects stay the same."""
        for tensor, copy in self._copies:
            tensor.data = self._device.fetch(copy)

    def _copy_all(self, tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        remaining, block = sum(map(_aligned_size, tensors)), torch.empty(0, dtype=torch.uint8)
        for tensor in tensors:
            if _aligned_size(tensor) > len(block):
                wanted = min(self._block_bytes, remaining)
                block = self._allocate(max(_aligned_size(tensor), wanted))
            copy = block[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            block = block[_aligned_size(tensor) :]
            remaining -= _aligned_size(tensor)
            yield copy.copy_(tensor.detach())

    def _allocate(self, size: int) -> torch.Tensor:
        """Return host memory, (size,) of uint8, pinned as long as the system allows it."""
        if self._can_pin:
            try:
                return self._device.pinned(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._can_pin = False
                logger.warning(
                    "the system pins no more memory: the rest of this model is kept in pageable "
                    "memory, from which it returns to the device more slowly"
                )
        return torch.empty(size, dtype=torch.uint8)


def _aligned_size(tensor: torch.Tensor) -> int:
    """Return the bytes that a tensor takes in a block."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
