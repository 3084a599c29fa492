"""A GPU with memory of its own, simulated on the CPU."""

import weakref
from dataclasses import dataclass, field

import torch

from serve_app.runtime.memory.device import Device


@dataclass(frozen=True, slots=True)
class SimulatedCard(Device):
    """A card on the CPU that counts the bytes of what is fetched to it, each a copy of its own."""

    bytes: dict[str, int] = field(
        default_factory=lambda: {"now": 0, "peak": 0, "capacity": 1 << 40, "pinnable": 1 << 40}
    )
    blocks: list[int] = field(default_factory=list)  # bytes of each that was pinned

    @property
    def has_own_memory(self) -> bool:
        return True

    def pinned(self, bytes: int) -> torch.Tensor:
        if sum(self.blocks) + bytes > self.bytes["pinnable"]:
            raise RuntimeError("CUDA error: out of memory")
        self.blocks.append(bytes)
        return torch.empty(bytes, dtype=torch.uint8)

    def fetch(self, copy: torch.Tensor) -> torch.Tensor:
        if self.bytes["now"] + copy.nbytes > self.bytes["capacity"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.bytes["now"] += copy.nbytes
        self.bytes["peak"] = max(self.bytes["peak"], self.bytes["now"])
        fetched = copy.clone()
        weakref.finalize(fetched.untyped_storage(), self._freed, copy.nbytes)
        return fetched

    def _freed(self, bytes: int) -> None:
        self.bytes["now"] -= bytes
