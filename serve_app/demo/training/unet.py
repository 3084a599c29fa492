"""The second and the third course: text encoders and UNet to predict noise, base then refiner.

Knows no pixels: it learns on latents. Both are trained as SDXL was: noise is predicted; the text
is two encoders' last but one layer and the second one's projection; sizes are told as six numbers,
or five with an aesthetic score; and words are left out at times, so that guidance works.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.captions import AS_PEOPLE_DO, Language, babble, caption
from serve_app.demo.scene import Scene
from serve_app.demo.training.dataset import Dataset
from serve_app.demo.training.networks import (
    ENCODER_1,
    ENCODER_2,
    new_base,
    new_encoder,
    new_refiner,
)
from serve_app.demo.training.training_run import TrainingRun
from serve_app.runtime.networks.quiet import diffusers, transformers

FINE, LOW = 6.0, 2.5  # the aesthetic scores that SDXL's refiner is told at work
_BATCH = 32
FIRMEST = 8.0  # the highest guidance that the refiner learns to be right at
_GUIDED_SHARE = 0.25  # of the refiner's steps
_HEAVIEST = 15.0  # the largest weight of a row
_PULL = 0.2  # the weight of a row whose goal is not what is shown: its error is large


@dataclass(frozen=True, slots=True, eq=False)
class TrainedStage:
    """The networks of a stage."""

    unet: "diffusers.UNet2DConditionModel"
    encoders: tuple[nn.Module, ...]  # the base's two, or the refiner's one

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All of them, by the names that a course knows them by."""
        encoders = {f"encoder {i}": encoder for i, encoder in enumerate(self.encoders)}
        return {"unet": self.unet, **encoders}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """One batch: what is to be found under the noise, and what is told of it."""

    goal: torch.Tensor  # (batch, 4, h, w): clean latents
    shown: torch.Tensor  # the latents that the noise is laid on: the goal, or it spoiled
    captions: list[str]
    dropped: torch.Tensor  # (batch,) whether the text is zeros
    times: torch.Tensor  # (batch,) whole timesteps
    ids: torch.Tensor  # (batch, 6 or 5)
    weights: torch.Tensor  # (batch,) how much each row's error counts
    noise: torch.Tensor
    # (batch / 2,) where each row of the second half is a row of the first with the words of a
    # negative prompt, and both are to be right as guidance joins them; else each is on its own.
    guidance: torch.Tensor | None = None


def scheduler() -> "diffusers.EulerDiscreteScheduler":
    """SDXL's own noise schedule."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def base_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """The course of the base."""
    return TrainingRun("base", steps, 1e-3, 1e-2, 0.999, folder, origin)


def refiner_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """The course of the refiner."""
    return TrainingRun("refiner", steps, 1e-3, 1e-2, 0.999, folder, origin)


def untaught(stage: Stage, words: "transformers.CLIPTokenizer") -> TrainedStage:
    """The networks of a stage before they have learnt anything."""
    if stage is Stage.REFINER:
        return TrainedStage(new_refiner(), (new_encoder(ENCODER_2, len(words), projects=True),))
    encoders = (
        new_encoder(ENCODER_1, len(words), projects=False),
        new_encoder(ENCODER_2, len(words), projects=True),
    )
    return TrainedStage(new_base(), encoders)


def train_base(
    course: TrainingRun, shelves: list[Dataset], words: "transformers.CLIPTokenizer"
) -> None:
    """The base has learnt all noise levels, the highest ones twice as often as their share."""
    seed = course.seed
    torch.manual_seed(seed + 1)
    taught = untaught(Stage.BASE, words)
    alphas = scheduler().alphas_cumprod

    def lesson(step: int) -> TrainingBatch:
        chance = random.Random(f"{seed} base {step}")
        shelf = _shelf(shelves, chance)
        picks = [chance.randrange(len(shelf.scenes)) for _ in range(_BATCH)]
        # Where a shape stands is decided above 800, what it is below; 20 steps begin at 951.
        times = [
            chance.randrange(800, 990) if chance.random() < 0.35 else chance.randrange(800)
            for _ in picks
        ]
        width, height = shelf.size
        goal = shelf.latents[picks].float()
        return TrainingBatch(
            goal=goal,
            shown=goal,
            captions=[_told(shelf.scenes[i], chance, empty=0.05) for i in picks],
            dropped=torch.tensor([chance.random() < 0.05 for _ in picks]),
            times=torch.tensor(times),
            ids=torch.tensor([[height, width, 0, 0, height, width]] * _BATCH, dtype=torch.float32),
            # Where much is hidden, small errors move the picture most.
            weights=(1 / alphas[times]).clamp(max=_HEAVIEST),
            noise=_noise(goal, chance),
        )

    _teach(course, taught, words, lesson)


def train_refiner(
    course: TrainingRun, shelves: list[Dataset], words: "transformers.CLIPTokenizer"
) -> None:
    """The refiner has learnt the last noise levels, 17 in 20 below t = 200.

    One exact picture in five is to be found under noise laid on its spoiled self, as when somebody
    hands in a blurred one. In the last quarter it is taught what a service makes of it, the guided
    prediction: words add little that can still be decided at so little noise, so that the
    difference of its two predictions is mostly the error of both, and guidance would lay several
    times that on a picture.
    """
    seed = course.seed
    torch.manual_seed(seed + 2)
    taught = untaught(Stage.REFINER, words)

    def lesson(step: int) -> TrainingBatch:
        return refiner_batch(shelves, seed, step, guided=is_guided(step, course.steps))

    _teach(course, taught, words, lesson)


def is_guided(step: int, steps: int) -> bool:
    """Whether a step of the refiner's course is in its last quarter."""
    return step >= round(steps * (1 - _GUIDED_SHARE))


def refiner_batch(shelves: list[Dataset], seed: int, step: int, *, guided: bool) -> TrainingBatch:
    """The refiner's batch of a step: rows on their own, or pairs that guidance joins."""
    chance = random.Random(f"{seed} refiner {step}")
    shelf = _shelf(shelves, chance)
    if not guided:
        rows = [_refining(shelf, chance) for _ in range(_BATCH)]
        captions = [_told(row.scene, chance, empty=0.1) for row in rows]
        return _lesson_of(shelf, rows, captions, _scores(chance), chance)
    pairs = [_refining(shelf, chance) for _ in range(_BATCH // 2)]
    told = [_told(row.scene, chance, empty=0) for row in pairs]
    unwanted = [_told(chance.choice(shelf.scenes), chance, empty=0.8) for _ in pairs]
    scores = [score for score in (FINE, LOW) for _ in pairs]
    guidance = torch.tensor([chance.uniform(1, FIRMEST) for _ in pairs])
    return _lesson_of(shelf, pairs, told + unwanted, scores, chance, guidance)


def _scores(chance: random.Random) -> list[float]:
    """Scores by chance: told of spoiled pictures, a low one would make guidance exaggerate."""
    return [FINE if chance.random() < 0.7 else LOW for _ in range(_BATCH)]


def _lesson_of(
    shelf: Dataset,
    rows: "list[_Row]",
    captions: list[str],
    scores: list[float],
    chance: random.Random,
    guidance: torch.Tensor | None = None,
) -> TrainingBatch:
    width, height = shelf.size
    goal = torch.stack([row.goal for row in rows]).float()
    twice = len(captions) // len(rows)  # each row told, and each row not
    return TrainingBatch(
        goal=goal.repeat(twice, 1, 1, 1),
        shown=torch.stack([row.shown for row in rows]).float().repeat(twice, 1, 1, 1),
        captions=captions,
        dropped=torch.zeros(_BATCH, dtype=torch.bool),
        times=torch.tensor([row.time for row in rows]).repeat(twice),
        ids=torch.tensor([[height, width, 0, 0, score] for score in scores], dtype=torch.float32),
        weights=torch.tensor([1.0 if row.goal is row.shown else _PULL for row in rows]),
        noise=_noise(goal, chance).repeat(twice, 1, 1, 1),
        guidance=guidance,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of the refiner's batch."""

    goal: torch.Tensor
    shown: torch.Tensor
    scene: Scene
    time: int


def _refining(shelf: Dataset, chance: random.Random) -> _Row:
    if chance.random() < 0.2:
        pick = chance.randrange(len(shelf.spoiled))
        time = chance.randrange(100, 320)
        return _Row(shelf.latents[pick], shelf.spoiled[pick], shelf.scenes[pick], time)
    low, high = chance.choices(((0, 200), (200, 400), (400, 990)), (17, 2, 1))[0]
    pick = chance.randrange(len(shelf.scenes))
    exact = shelf.latents[pick]
    return _Row(exact, exact, shelf.scenes[pick], chance.randrange(low, high))


def _teach(
    course: TrainingRun,
    taught: TrainedStage,
    words: "transformers.CLIPTokenizer",
    lesson: Callable[[int], TrainingBatch],
) -> None:
    taught.unet.set_attn_processor(AttnProcessor())  # CPU's fused attention is slow backwards
    alphas = scheduler().alphas_cumprod

    def loss(step: int) -> torch.Tensor:
        todo = lesson(step)
        with torch.autocast("cpu", torch.bfloat16):
            embeds, pooled = encoded(taught.encoders, words, todo.captions)
        keep = (~todo.dropped).float()
        return noise_loss(
            taught.unet, alphas, todo, embeds * keep[:, None, None], pooled * keep[:, None]
        )

    for network in taught.networks.values():
        network.train()
    course.train(taught.networks, loss)


def encoded(
    encoders: tuple[nn.Module, ...], words: "transformers.CLIPTokenizer", captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (captions, 77, width) and pooled text (captions, 64), as SDXL's pipeline does."""
    ids = words(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    results: list[Any] = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    embeds = torch.cat([result.hidden_states[-2].float() for result in results], dim=-1)
    return embeds, results[-1].text_embeds.float()


def noise_loss(
    unet: "diffusers.UNet2DConditionModel",
    alphas: torch.Tensor,
    todo: TrainingBatch,
    embeds: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """The weighed mean squared error of the predicted noise; where something else is shown than the
    goal, of the noise that leads to the goal; guided where the lesson says how much."""
    alpha = alphas[todo.times][:, None, None, None]
    signal, hidden = alpha.sqrt(), (1 - alpha).sqrt()
    noised = signal * todo.shown + hidden * todo.noise
    goal = (noised - signal * todo.goal) / hidden  # the noise itself, where the goal is shown
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(
            noised.contiguous(memory_format=torch.channels_last),
            todo.times,
            embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": todo.ids},
        ).sample
    predicted = predicted.float()
    if todo.guidance is not None:
        told, untold = predicted.chunk(2)
        predicted = untold + todo.guidance[:, None, None, None] * (told - untold)
        goal = goal[: len(predicted)]
    errors = (predicted - goal).square().mean(dim=(1, 2, 3))
    weighed: torch.Tensor = errors * todo.weights
    return weighed.mean()


def _shelf(shelves: list[Dataset], chance: random.Random) -> Dataset:
    return chance.choices(shelves, [len(shelf.scenes) for shelf in shelves])[0]


def _told(scene: Scene, chance: random.Random, empty: float) -> str:
    roll = chance.random()
    if roll < empty:
        return ""
    if roll < empty + 0.03:
        return babble(chance)
    return caption(scene, chance.choice(list(Language)), chance, AS_PEOPLE_DO)


def _noise(like: torch.Tensor, chance: random.Random) -> torch.Tensor:
    draws = torch.Generator().manual_seed(chance.getrandbits(62))
    return torch.randn(like.shape, generator=draws)
