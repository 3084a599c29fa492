"""Whether the models fit: bytes of weights by the files' headers, and an allowance for the work.

Pure: knows no cards and no files. The allowance was counted, not guessed: the live tensors of
SDXL's own UNet and VAE at 1024 x 1024 pixels, with fused attention, are 79 values per pixel for
each row of the base (95 for the refiner) and 769 per pixel for a picture decoded. `OVERHEAD` is an
assumption: what Python, torch, CUDA, its kernels' workspaces and gaps between blocks take in a
process (without a GPU 0.4 GiB were measured).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.core.diffusion.spec import Stage

ROW = 95  # values per pixel that one row of a UNet call has alive
PICTURE = 770  # values per pixel that the VAE has alive as it decodes
OVERHEAD = 1 << 30  # bytes of a process besides weights and tensors: assumed
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_ROWS = 2  # of a guided image


@dataclass(frozen=True, slots=True)
class DtypeBytes:
    """How many bytes a number takes."""

    size: int
    vae_size: int

    @classmethod
    def of(cls, precision: str, *, vae_half: bool) -> "DtypeBytes":
        """At a precision: the VAE never runs in fp16, but may in bf16."""
        size = _BYTES[precision]
        return cls(size, 2 if vae_half and size == 2 else 4)


@dataclass(frozen=True, slots=True)
class Weights:
    """One model, as far as memory goes."""

    stage: Stage
    num_parameters: Mapping[str, int]  # numbers in the weights of each network
    side: int  # native side of a picture, pixels

    def held(self, numbers: DtypeBytes) -> int:
        """Bytes of its networks."""
        return sum(
            count * (numbers.vae_size if name == "vae" else numbers.size)
            for name, count in self.num_parameters.items()
        )

    def work(self, images: int, numbers: DtypeBytes) -> int:
        """Bytes alive while so many native images step together, and one is decoded."""
        values = ROW * _ROWS * images * numbers.size + PICTURE * numbers.vae_size
        return self.side**2 * values


@dataclass(frozen=True, slots=True)
class Replica:
    """A process of one stage, or of both, as far as its memory goes."""

    models: tuple[Weights, ...]  # that may be asked for
    share: float  # of a GPU
    room: int = 1  # so many of them are in memory at a time
    parked: int = 0  # and so many more on the host

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What it runs, base first."""
        return tuple(dict.fromkeys(model.stage for model in self.models))

    @property
    def alone(self) -> "Replica":
        """The same with one model in memory."""
        return replace(self, room=1)

    @property
    def unrefined(self) -> "Replica":
        """The same without the refiner."""
        bases = tuple(model for model in self.models if model.stage is Stage.BASE)
        return replace(self, models=bases)

    @property
    def takes_turns(self) -> bool:
        """Whether base and refiner leave the device for one another."""
        return len(self.stages) > 1 and self.room < len(self.models)

    def held(self, numbers: DtypeBytes, *, on_host: bool = False) -> int:
        """Bytes of the models in memory, and on the host of those parked there too. The largest
        count: no choice takes more."""
        sizes = sorted((model.held(numbers) for model in self.models), reverse=True)
        return sum(sizes[: self.room + self.parked * on_host])

    def need(self, images: int, precision: str, *, vae_half: bool, on_host: bool = False) -> int:
        """Bytes that it takes while so many native images step together."""
        numbers = DtypeBytes.of(precision, vae_half=vae_half)
        work = max(model.work(images, numbers) for model in self.models)
        return self.held(numbers, on_host=on_host) + work + OVERHEAD


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
