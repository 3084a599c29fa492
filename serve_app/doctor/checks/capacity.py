"""Whether the replicas of a config find room: GPUs enough, and memory enough on each.

Knows no files: what the weights come to, and what the cards have, is handed in.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serve_app.config.app_args import AppArgs
from serve_app.config.checkpoints import ENV_VAR
from serve_app.config.topology import Topology
from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks.gpu_memory import DtypeBytes, Replica, Weights, placed
from serve_app.doctor.checks.gpu_probe import Card, gib
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

_NO_REFINER = f"{ENV_VAR[Stage.REFINER]}="
_TOGETHER = "MAX_LOADED_MODELS=2"


@dataclass(frozen=True, slots=True)
class Load:
    """What is to run at once."""

    replicas: tuple[Replica, ...]
    images: int  # that step together on each
    precision: str
    vae_half: bool  # whether the VAE may run in bf16

    def need(
        self,
        held: Iterable[Replica],
        *,
        images: int | None = None,
        precision: str | None = None,
        on_host: bool = False,
    ) -> int:
        """Bytes for these replicas, as they are or with fewer images or another precision; on the
        host with what is parked there."""
        return sum(
            replica.need(
                images or self.images,
                precision or self.precision,
                vae_half=self.vae_half,
                on_host=on_host,
            )
            for replica in held
        )

    def copies(self, precision: str | None = None) -> int:
        """Bytes of the host's memory from which cards fetch the models that take turns."""
        numbers = DtypeBytes.of(precision or self.precision, vae_half=self.vae_half)
        return sum(r.held(numbers, on_host=True) for r in self.replicas if r.takes_turns)

    @property
    def label(self) -> str:
        """How it is set up, in words."""
        together = f"{self.images} images together" if self.images > 1 else "one image at a time"
        models = max(min(one.room, len(one.models)) for one in self.replicas)
        kept = f", {models} models in memory" if models > 1 else ""
        return f"{self.precision}, {together}{kept}"


def replicas_of(
    args: AppArgs,
    bases: Sequence[Weights],
    refiner: Weights | None,
    device: str,
    gpus: int,
    room: int,
) -> tuple[Replica, ...]:
    """The replicas that a config starts with, with `room` for so many models on each."""
    topology = Topology.resolve(args, device, gpus, refiner=refiner is not None)
    weights = {Stage.BASE: tuple(bases), Stage.REFINER: (refiner,) if refiner else ()}
    return tuple(
        Replica(
            tuple(model for stage in deployment.stages for model in weights[stage]),
            deployment.num_gpus,
            room,
            parked=len(deployment.stages) - 1,
        )
        for deployment in topology.stages
        for _ in range(deployment.scale.min_replicas)
    )


def check_gpus(load: Load, cards: Sequence[Card], config: str) -> Finding:
    """Whether Ray finds a GPU, or the part of one, for every replica."""
    asked = sum(replica.share for replica in load.replicas)
    said = f"{len(load.replicas)} replicas ask Ray for {asked:g} GPUs"
    if placed(load.replicas, len(cards)) is not None:
        return fine("gpus", f"{said}, of {len(cards)}")
    said += f", and there are {len(cards)}: the rest would wait for ever"
    return fail("gpus", said, f'"${{EDITOR:-vi}}" {config}')


def check_vram(load: Load, cards: Sequence[Card]) -> Finding:
    """Whether each card holds the replicas that come to it, at work."""
    layout = placed(load.replicas, len(cards))
    if layout is None:
        layout = (tuple(r for r in load.replicas if Stage.BASE in r.stages)[:1],)
    judged = [_judge(load, held, card) for held, card in zip(layout, cards, strict=False) if held]
    return next((one for one in judged if one.fix), judged[0])


def check_ram(load: Load, free: int) -> Finding:
    """Whether the machine's own memory holds all replicas, at work."""
    need = load.need(load.replicas, on_host=True)
    if not free:
        return skip("memory", "how much memory is free can't be told on this system")
    said = f"the models need {gib(need)} of memory ({load.label}), and {gib(free)} can be taken"
    if need <= free:
        return fine("memory", said)
    return fail("memory", said, _remedy(load, load.replicas, free, gpu=False))


def check_copies(load: Load, cards: Sequence[Card], free: int) -> Iterator[Finding]:
    """Whether the machine's own memory holds the models that take turns on a card."""
    need = load.copies()
    if not need:
        return
    if not free:
        yield skip("host memory", "how much memory is free can't be told on this system")
        return
    said = (
        f"copies of the models that take turns on the card need {gib(need)} of the machine's own "
        f"memory, which can't be swapped out, and {gib(free)} can be taken"
    )
    if need <= free:
        yield fine("host memory", said)
    elif load.copies("fp16") <= free:
        yield fail("host memory", said, "MODEL_PRECISION=fp16")
    elif any(_beside(load, load.replicas, card) for card in cards):
        yield fail("host memory", said, _TOGETHER)
    else:
        yield fail("host memory", said, _NO_REFINER)


def _beside(load: Load, held: Sequence[Replica], card: Card) -> bool:
    """Whether base and refiner that take turns need not: the card has room for both at once."""
    both = [replace(one, room=2) for one in held if one.takes_turns]
    return len(both) == len(held) == 1 and not both[0].takes_turns and load.need(both) <= card.free


def _judge(load: Load, held: Sequence[Replica], card: Card) -> Finding:
    need = load.need(held)
    stages = list(dict.fromkeys(stage.value for replica in held for stage in replica.stages))
    names = " and ".join(stages) + (" in turn" if any(r.takes_turns for r in held) else "")
    said = f"{names} need {gib(need)} ({load.label}), and the {card.name} has {gib(card.total)}"
    if len(stages) == 1:
        said = said.replace(" need ", " needs ", 1)
    if need > card.total:
        least = "MODEL_MAX_BATCH_SIZE=1" if load.images > 1 else "ENABLE_XFORMERS=1"
        return warn(
            "memory",
            f"{said}: to have room, fewer images would be made at a time, or all more slowly",
            _remedy(load, held, card.total, otherwise=least),
        )
    if need > card.free:
        return warn(
            "memory",
            f"{said}, but other processes leave only {gib(card.free)} of it free",
            _remedy(load, held, card.free, otherwise="nvidia-smi"),
        )
    more = f": enough for both at once, by {_TOGETHER}" if _beside(load, held, card) else ""
    return fine("memory", f"{said}, {gib(card.free)} of it free{more}")


def _remedy(
    load: Load,
    held: Sequence[Replica],
    room: int,
    *,
    otherwise: str = "MODEL_CHECKPOINT_DIR=",
    gpu: bool = True,
) -> str:
    """The first of the guide's measures that helps, the one that costs least first."""
    need = partial(load.need, on_host=not gpu)
    alone = [replica.alone for replica in held]
    if alone != list(held) and need(alone) <= room:
        return "MAX_LOADED_MODELS=1"
    half = "fp16" if gpu else load.precision  # a CPU gains nothing by it
    if half != load.precision and need(held, precision=half) <= room:
        return f"MODEL_PRECISION={half}"
    for images in range(load.images - 1, 0, -1):
        if need(held, images=images) <= room:
            return f"MODEL_MAX_BATCH_SIZE={images}"
    if half != load.precision and need(held, images=1, precision=half) <= room:
        return f"MODEL_PRECISION={half}"  # then the next examination asks for fewer images
    base = [replica.unrefined for replica in held if Stage.BASE in replica.stages]
    if base and base != list(held) and need(base, images=1, precision=half) <= room:
        return _NO_REFINER
    return otherwise
