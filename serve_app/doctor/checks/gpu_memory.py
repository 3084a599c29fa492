"""Estimate the memory that models need: weights by their files' headers, and a working allowance.

Pure: no GPUs, no files. The allowance was counted: the live tensors of SDXL's own UNet and VAE at
1024 x 1024 pixels, with fused attention, are 91 values per pixel for each row of the base (102 for
the refiner), of which 12 and 7 are keys and values of the prompt that are kept, and 769 per pixel
for a decoded image. `PROCESS_OVERHEAD` is an assumption: what Python, torch, CUDA, kernel
workspaces and gaps between blocks take in a process (0.4 GiB were measured without a GPU).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.core.diffusion.spec import Stage

UNET_VALUES = 103  # live values per pixel and UNet row
DECODE_VALUES = 770  # live values per pixel while the VAE decodes
PROCESS_OVERHEAD = 1 << 30  # bytes of a process besides weights and tensors: assumed
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_ROWS = 2  # UNet rows of an image with guidance
_ROUNDING = 1e-9  # of a sum of GPU shares


@dataclass(frozen=True, slots=True)
class DtypeBytes:
    """Bytes of one number in the networks and in the VAE."""

    size: int
    vae_size: int

    @classmethod
    def of(cls, precision: str, *, vae_half: bool) -> "DtypeBytes":
        """Return the sizes at a precision; the VAE never runs in fp16, but may run in bf16."""
        size = _BYTES[precision]
        return cls(size, 2 if vae_half and size == 2 else 4)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The memory-relevant facts of one model."""

    stage: Stage
    num_parameters: Mapping[str, int]  # of each network
    native_size: int  # side of an image in pixels

    def weight_bytes(self, dtypes: DtypeBytes) -> int:
        """Return the bytes of its weights."""
        return sum(
            count * (dtypes.vae_size if name == "vae" else dtypes.size)
            for name, count in self.num_parameters.items()
        )

    def working_bytes(self, images: int, dtypes: DtypeBytes) -> int:
        """Return the bytes alive while `images` native images step together and one is decoded."""
        values = UNET_VALUES * _ROWS * images * dtypes.size + DECODE_VALUES * dtypes.vae_size
        return self.native_size**2 * values


@dataclass(frozen=True, slots=True)
class Replica:
    """The memory-relevant facts of a process that runs one stage or both."""

    models: tuple[ModelSize, ...]  # that requests may name
    gpu_share: float
    max_loaded: int = 1  # models on the device at once
    offloaded: int = 0  # further models in host memory

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages it runs, base first."""
        return tuple(dict.fromkeys(model.stage for model in self.models))

    @property
    def with_one_model(self) -> "Replica":
        """The same replica with one model on the device at once."""
        return replace(self, max_loaded=1)

    @property
    def without_refiner(self) -> "Replica":
        """The same replica without the refiner."""
        bases = tuple(model for model in self.models if model.stage is Stage.BASE)
        return replace(self, models=bases)

    @property
    def swaps_stages(self) -> bool:
        """Whether base and refiner take turns on the device."""
        return len(self.stages) > 1 and self.max_loaded < len(self.models)

    def weight_bytes(self, dtypes: DtypeBytes, *, on_host: bool = False) -> int:
        """Return the largest number of bytes that the weights of loaded models can take.

        `on_host` counts the offloaded models too.
        """
        sizes = sorted((model.weight_bytes(dtypes) for model in self.models), reverse=True)
        return sum(sizes[: self.max_loaded + self.offloaded * on_host])

    def total_bytes(
        self, images: int, precision: str, *, vae_half: bool, on_host: bool = False
    ) -> int:
        """Return the bytes that it needs while `images` native images step together."""
        dtypes = DtypeBytes.of(precision, vae_half=vae_half)
        working = max(model.working_bytes(images, dtypes) for model in self.models)
        return self.weight_bytes(dtypes, on_host=on_host) + working + PROCESS_OVERHEAD


def assign_to_gpus(
    replicas: Sequence[Replica], num_gpus: int
) -> tuple[tuple[Replica, ...], ...] | None:
    """Return the replicas of each GPU, the largest shares placed first; None if they don't fit."""
    available = [1.0] * num_gpus
    assigned: list[list[Replica]] = [[] for _ in available]
    for replica in sorted(replicas, key=lambda replica: -replica.gpu_share):
        fitting = [
            index for index, share in enumerate(available) if share + _ROUNDING >= replica.gpu_share
        ]
        if not fitting:
            return None
        available[fitting[0]] -= replica.gpu_share
        assigned[fitting[0]].append(replica)
    return tuple(map(tuple, assigned))
