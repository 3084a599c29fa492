"""`HostCopies`: what networks hold, once more in the host's memory.

Knows no stages, samples or shelves: tensors alone. Weights never change here, so a copy is made
once: from then on leaving the device costs nothing, and coming back to it one copy.
"""

import logging
from collections.abc import Iterable, Sequence

import torch

from serve_app.runtime.memory.device import Device, is_out_of_memory

logger = logging.getLogger("aura.memory")

# torch rounds what it pins up to a power of two: SDXL's tensors one by one would take a quarter
# more. Blocks of one size are also what the next model finds free again.
_BLOCK = 1 << 28  # bytes
_ALIGNED = 64  # bytes at which each tensor begins


class PinnedCopies:
    """Parameters and buffers, and a copy of each, packed in blocks."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], device: Device, *, block: int = _BLOCK
    ) -> None:
        self._device = device
        self._size = block
        self._pins = True
        plain = [one for one in tensors if one.is_contiguous()]  # others are left to `Module.to`
        self._copies = list(zip(plain, self._packed(plain), strict=True))

    def offload(self) -> None:
        """Every tensor is its copy: what it was on the device is given back."""
        for tensor, copy in self._copies:
            tensor.data = copy

    def restore(self) -> None:
        """Every tensor is on the device again; parameters are the same objects as ever."""
        for tensor, copy in self._copies:
            tensor.data = self._device.fetch(copy)

    def _packed(self, tensors: list[torch.Tensor]) -> Iterable[torch.Tensor]:
        ahead, block = sum(map(_aligned_size, tensors)), torch.empty(0, dtype=torch.uint8)
        for tensor in tensors:
            if _aligned_size(tensor) > len(block):
                block = self._block(max(_aligned_size(tensor), min(self._size, ahead)))
            copy = block[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            block = block[_aligned_size(tensor) :]
            ahead -= _aligned_size(tensor)
            yield copy.copy_(tensor.detach())

    def _block(self, bytes: int) -> torch.Tensor:
        if self._pins:
            try:
                return self._device.pinned(bytes)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._pins = False
                logger.warning(
                    "the system pins no more memory: the rest of this model lies in memory of the "
                    "usual kind, whence it comes back to the device more slowly"
                )
        return torch.empty(bytes, dtype=torch.uint8)


def _aligned_size(tensor: torch.Tensor) -> int:
    """Bytes of a block that a tensor takes."""
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED
