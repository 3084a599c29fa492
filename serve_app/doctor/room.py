"""Whether the replicas of a config find room: GPUs enough, and memory enough on each.

Knows no files: what the weights come to, and what the cards have, is handed in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.args import AppArgs
from serve_app.core.spec import Stage
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from serve_app.doctor.graphics import Card, gib
from serve_app.doctor.memory import Replica, Weights, placed
from serve_app.runtime.checkpoint import VARIABLE

_NO_REFINER = f"{VARIABLE[Stage.REFINER]}="


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
    ) -> int:
        """Bytes for these replicas, as they are or with fewer images or another precision."""
        return sum(
            replica.need(
                images or self.images,
                precision or self.precision,
                vae_half=self.vae_half,
            )
            for replica in held
        )

    @property
    def label(self) -> str:
        """How it is set up, in words."""
        together = f"{self.images} images together" if self.images > 1 else "one image at a time"
        models = max(replica.weights.models for replica in self.replicas)
        kept = f", {models} models in memory" if models > 1 else ""
        return f"{self.precision}, {together}{kept}"


def replicas_of(
    args: AppArgs, stages: Mapping[Stage, Weights], device: str, gpus: int
) -> tuple[Replica, ...]:
    """The replicas that a config starts with; each stage's weights are given."""
    share = args.gpu_share(gpus, refiner=Stage.REFINER in stages)
    scales = {Stage.BASE: args.base, Stage.REFINER: args.refiner}
    return tuple(
        Replica(stage, weights, scales[stage].gpus_on(device, share))
        for stage, weights in stages.items()
        for _ in range(scales[stage].min_replicas)
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
        layout = (tuple(r for r in load.replicas if r.stage is Stage.BASE)[:1],)
    judged = [_judge(load, held, card) for held, card in zip(layout, cards, strict=False) if held]
    return next((one for one in judged if one.mend), judged[0])


def check_ram(load: Load, free: int) -> Finding:
    """Whether the machine's own memory holds all replicas, at work."""
    need = load.need(load.replicas)
    if not free:
        return skip("memory", "how much memory is free can't be told on this system")
    said = f"the models need {gib(need)} of memory ({load.label}), and {gib(free)} can be taken"
    if need <= free:
        return fine("memory", said)
    return fail("memory", said, _remedy(load, load.replicas, free, gpu=False))


def _judge(load: Load, held: Sequence[Replica], card: Card) -> Finding:
    need = load.need(held)
    names = " and ".join(dict.fromkeys(replica.stage.value for replica in held))
    said = f"{names} need {gib(need)} ({load.label}), and the {card.name} has {gib(card.total)}"
    if len(set(replica.stage for replica in held)) == 1:
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
    return fine("memory", f"{said}, {gib(card.free)} of it free")


def _remedy(
    load: Load,
    held: Sequence[Replica],
    room: int,
    *,
    otherwise: str = "MODEL_CHECKPOINT_DIR=",
    gpu: bool = True,
) -> str:
    """The first of the guide's measures that helps, the one that costs least first."""
    alone = [replica.alone for replica in held]
    if alone != list(held) and load.need(alone) <= room:
        return "MODELS_IN_MEMORY=1"
    half = "fp16" if gpu else load.precision  # a CPU gains nothing by it
    if half != load.precision and load.need(held, precision=half) <= room:
        return f"MODEL_PRECISION={half}"
    for images in range(load.images - 1, 0, -1):
        if load.need(held, images=images) <= room:
            return f"MODEL_MAX_BATCH_SIZE={images}"
    if half != load.precision and load.need(held, images=1, precision=half) <= room:
        return f"MODEL_PRECISION={half}"  # then the next examination asks for fewer images
    base = [replica for replica in held if replica.stage is Stage.BASE]
    least = load.need(base, images=1, precision=half)
    if 0 < len(base) < len(held) and least <= room:
        return _NO_REFINER
    return otherwise
