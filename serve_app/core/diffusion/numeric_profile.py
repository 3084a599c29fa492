"""`NumericProfile`: everything but the spec that decides the bits of an image.

No torch: the runtime inspects its device and fills in the fields.
"""

from dataclasses import astuple, dataclass
from hashlib import sha256

from serve_app.core.diffusion.spec import Stage


def default_precision(device: str) -> str:
    """Return the precision of a kind of device (cpu, cuda or mps) where no setting names one."""
    return "fp32" if device == "cpu" else "fp16"


ARITHMETIC = 3  # grows when the same is computed with other kernels, or in another order


@dataclass(frozen=True, slots=True)
class NumericProfile:
    """One per stage and kind of device. Replicas with equal profiles make equal bytes."""

    stage: Stage
    device: str  # its kind, such as "cpu AVX512" or "NVIDIA H200", without the index
    dtype: str
    vae_dtype: str
    attention: str
    lanes: int  # most rows of a UNet call; 0 in fast mode, where the batch affects the last bits
    memory_savings: tuple[str, ...]  # names of the savings that are on, such as VAE tiling
    cpu_threads: int
    torch: str
    model: str  # the name of the checkpoint
    libraries: tuple[str, ...] = ()  # those that run the networks, with versions: "peft 0.19.1"
    arithmetic: int = ARITHMETIC
    compile: str = "off"  # which of its calls are compiled: MODEL_COMPILE
    quantization: str = "off"  # of the UNet's weights: MODEL_QUANTIZATION
    prepacked: bool = False  # whether weights are laid out for a CPU's kernels at load
    weights: str = ""  # a digest of the checkpoint's files, which alone can continue its snapshots

    @property
    def strict(self) -> bool:
        """Whether the bytes of an image are independent of its batch."""
        return self.lanes > 0

    @property
    def name(self) -> str:
        """A short name for snapshots and image metadata: readable, with a digest of every field."""
        digest = sha256(repr(astuple(self)).encode()).hexdigest()[:8]
        return f"{self.stage}-{self.dtype}-{self.lanes or 'fast'}-{digest}"
