"""Whether the models fit: bytes of weights by the files' headers, and an allowance for the work.

Pure: knows no cards and no files. The allowance was counted, not guessed: the live tensors of
SDXL's own UNet and VAE at 1024 x 1024 pixels, with fused attention, are 79 values per pixel for
each row of the base (95 for the refiner) and 769 per pixel for a picture decoded. `OVERHEAD` is an
assumption: what Python, torch, CUDA, its kernels' workspaces and gaps between blocks take in a
process (without a GPU 0.4 GiB were measured).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.core.spec import Stage

ROW = 95  # values per pixel that one row of a UNet call has alive
PICTURE = 770  # values per pixel that the VAE has alive as it decodes
OVERHEAD = 1 << 30  # bytes of a process besides weights and tensors: assumed
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_ROWS = 2  # of a guided image


@dataclass(frozen=True, slots=True)
class Weights:
    """What a stage holds: the same model so many times, as far as memory goes."""

    parameters: Mapping[str, int]  # numbers in the weights of each network
    side: int  # native side of a picture, pixels
    models: int = 1  # in memory at a time


@dataclass(frozen=True, slots=True)
class Replica:
    """A stage's process, as far as its memory goes."""

    stage: Stage
    weights: Weights
    share: float  # of a GPU

    @property
    def alone(self) -> "Replica":
        """The same with one model in memory."""
        return replace(self, weights=replace(self.weights, models=1))

    def need(self, images: int, precision: str, *, vae_half: bool) -> int:
        """Bytes that it takes while so many native images step together."""
        size = _BYTES[precision]
        vae_size = 2 if vae_half and size == 2 else 4  # the VAE never runs in fp16
        held = self.weights
        model = sum(
            count * (vae_size if name == "vae" else size) for name, count in held.parameters.items()
        )
        work = held.side**2 * (ROW * _ROWS * images * size + PICTURE * vae_size)
        return held.models * model + work + OVERHEAD


def placed(replicas: Sequence[Replica], cards: int) -> tuple[tuple[Replica, ...], ...] | None:
    """The replicas of each card, whole ones first; None when they ask for more cards."""
    room = [1.0] * cards
    held: list[list[Replica]] = [[] for _ in room]
    for replica in sorted(replicas, key=lambda one: -one.share):
        fitting = [n for n, left in enumerate(room) if left + 1e-9 >= replica.share]
        if not fitting:
            return None
        room[fitting[0]] -= replica.share
        held[fitting[0]].append(replica)
    return tuple(map(tuple, held))
