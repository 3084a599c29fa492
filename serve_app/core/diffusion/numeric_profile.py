"""`NumericProfile`: all that decides the bits of a picture besides its spec.

Knows no devices: the runtime looks them up and says what it found.
"""

from dataclasses import astuple, dataclass
from hashlib import sha256

from serve_app.core.diffusion.spec import Stage


def default_precision(device: str) -> str:
    """Return the precision of a kind of device (cpu, cuda or mps) where no setting names one."""
    return "fp32" if device == "cpu" else "fp16"


@dataclass(frozen=True, slots=True)
class NumericProfile:
    """One per stage and device kind. Two replicas with equal profiles make equal bytes."""

    stage: Stage
    device: str  # the kind, "cpu AVX512" or "NVIDIA H200": never a card's number
    dtype: str
    vae_dtype: str
    attention: str
    lanes: int  # rows of every UNet call; 0 in fast mode, where company decides the last bits
    memory_savings: tuple[str, ...]  # what was given up for room
    cpu_threads: int
    torch: str
    model: str  # the checkpoint's name: a snapshot of one is nothing to another

    @property
    def strict(self) -> bool:
        """Whether bytes are promised."""
        return self.lanes > 0

    @property
    def name(self) -> str:
        """A short name for snapshots and pictures: readable, with a digest of every field."""
        digest = sha256(repr(astuple(self)).encode()).hexdigest()[:8]
        return f"{self.stage}-{self.dtype}-{self.lanes or 'fast'}-{digest}"
