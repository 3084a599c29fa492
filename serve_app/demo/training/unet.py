"""Training of text encoders and UNet, base and then refiner, on latents.

Both are trained as SDXL was: they predict noise; the conditioning is the penultimate layer of two
text encoders, the projection of the second, and six size numbers, or five with an aesthetic score;
captions are dropped at times, so that guidance works.
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

FINE, LOW = 6.0, 2.5  # aesthetic scores: SDXL's defaults, positive and negative
_BATCH = 32
MAX_GUIDANCE = 8.0  # that the refiner is trained for
_GUIDED_SHARE = 0.25  # of the refiner's steps
_MAX_WEIGHT = 15.0  # of a row's error
_DEGRADED_WEIGHT = 0.2  # of a row with a degraded image, whose error is large


@dataclass(frozen=True, slots=True, eq=False)
class TrainedStage:
    """The networks of a stage."""

    unet: "diffusers.UNet2DConditionModel"
    encoders: tuple[nn.Module, ...]  # the base's two, or the refiner's one

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name, as a training run takes them."""
        encoders = {f"encoder {i}": encoder for i, encoder in enumerate(self.encoders)}
        return {"unet": self.unet, **encoders}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """One batch: latents to recover from noise, and their conditioning."""

    target: torch.Tensor  # (batch, 4, h, w): clean latents
    visible: torch.Tensor  # latents that noise is added to: the target, or it degraded
    captions: list[str]
    dropped: torch.Tensor  # (batch,) whether the text is zeros
    times: torch.Tensor  # (batch,) whole timesteps
    ids: torch.Tensor  # (batch, 6 or 5)
    weights: torch.Tensor  # (batch,) of each row's error
    noise: torch.Tensor
    # (batch / 2,) guidance scales, if the second half repeats the first with negative prompts and
    # the loss is of the guided prediction; None if every row is on its own.
    guidance: torch.Tensor | None = None


def scheduler() -> "diffusers.EulerDiscreteScheduler":
    """Return SDXL's noise schedule."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def base_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """Return the training run of base."""
    return TrainingRun("base", steps, 1e-3, 1e-2, 0.999, folder, origin)


def refiner_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """Return the training run of the refiner."""
    return TrainingRun("refiner", steps, 1e-3, 1e-2, 0.999, folder, origin)


def new_stage(stage: Stage, tokenizer: "transformers.CLIPTokenizer") -> TrainedStage:
    """Return the networks of a stage before training."""
    if stage is Stage.REFINER:
        return TrainedStage(new_refiner(), (new_encoder(ENCODER_2, len(tokenizer), projects=True),))
    encoders = (
        new_encoder(ENCODER_1, len(tokenizer), projects=False),
        new_encoder(ENCODER_2, len(tokenizer), projects=True),
    )
    return TrainedStage(new_base(), encoders)


def train_base(
    run: TrainingRun, datasets: list[Dataset], tokenizer: "transformers.CLIPTokenizer"
) -> None:
    """Train base on all noise levels, the highest ones twice as often as their share."""
    seed = run.seed
    torch.manual_seed(seed + 1)
    stage_networks = new_stage(Stage.BASE, tokenizer)
    alphas = scheduler().alphas_cumprod

    def batch_of(step: int) -> TrainingBatch:
        rng = random.Random(f"{seed} base {step}")
        dataset = _choose_dataset(datasets, rng)
        picks = [rng.randrange(len(dataset.scenes)) for _ in range(_BATCH)]
        # A shape's place is decided above 800, its kind below; 20 steps start at 951.
        times = [
            rng.randrange(800, 990) if rng.random() < 0.35 else rng.randrange(800) for _ in picks
        ]
        width, height = dataset.size
        target = dataset.latents[picks].float()
        return TrainingBatch(
            target=target,
            visible=target,
            captions=[_caption(dataset.scenes[i], rng, empty=0.05) for i in picks],
            dropped=torch.tensor([rng.random() < 0.05 for _ in picks]),
            times=torch.tensor(times),
            ids=torch.tensor([[height, width, 0, 0, height, width]] * _BATCH, dtype=torch.float32),
            # Small errors change the image most where noise hides most of it.
            weights=(1 / alphas[times]).clamp(max=_MAX_WEIGHT),
            noise=_noise(target, rng),
        )

    _train(run, stage_networks, tokenizer, batch_of)


def train_refiner(
    run: TrainingRun, datasets: list[Dataset], tokenizer: "transformers.CLIPTokenizer"
) -> None:
    """Train the refiner on the last noise levels, 17 of 20 rows below t = 200.

    One image in five is recovered from a degraded version of itself, as when a client sends a
    blurred one. The last quarter trains the guided prediction. At so little noise the caption
    decides little, so the difference of the two predictions is mostly their error, and guidance
    would multiply it.
    """
    seed = run.seed
    torch.manual_seed(seed + 2)
    stage_networks = new_stage(Stage.REFINER, tokenizer)

    def batch_of(step: int) -> TrainingBatch:
        return refiner_batch(datasets, seed, step, guided=is_guided(step, run.steps))

    _train(run, stage_networks, tokenizer, batch_of)


def is_guided(step: int, steps: int) -> bool:
    """Return whether a step of the refiner's run is in its last quarter."""
    return step >= round(steps * (1 - _GUIDED_SHARE))


def refiner_batch(datasets: list[Dataset], seed: int, step: int, *, guided: bool) -> TrainingBatch:
    """Return the refiner's batch of a step: single rows, or pairs for guidance."""
    rng = random.Random(f"{seed} refiner {step}")
    dataset = _choose_dataset(datasets, rng)
    if not guided:
        rows = [_refining(dataset, rng) for _ in range(_BATCH)]
        captions = [_caption(row.scene, rng, empty=0.1) for row in rows]
        return _batch_of_rows(dataset, rows, captions, _scores(rng), rng)
    pairs = [_refining(dataset, rng) for _ in range(_BATCH // 2)]
    positive = [_caption(row.scene, rng, empty=0) for row in pairs]
    negative = [_caption(rng.choice(dataset.scenes), rng, empty=0.8) for _ in pairs]
    scores = [score for score in (FINE, LOW) for _ in pairs]
    guidance = torch.tensor([rng.uniform(1, MAX_GUIDANCE) for _ in pairs])
    return _batch_of_rows(dataset, pairs, positive + negative, scores, rng, guidance)


def _scores(rng: random.Random) -> list[float]:
    """Return random scores: low ones for degraded images would make guidance exaggerate."""
    return [FINE if rng.random() < 0.7 else LOW for _ in range(_BATCH)]


def _batch_of_rows(
    dataset: Dataset,
    rows: "list[_Row]",
    captions: list[str],
    scores: list[float],
    rng: random.Random,
    guidance: torch.Tensor | None = None,
) -> TrainingBatch:
    width, height = dataset.size
    target = torch.stack([row.target for row in rows]).float()
    twice = len(captions) // len(rows)  # 2 for pairs
    return TrainingBatch(
        target=target.repeat(twice, 1, 1, 1),
        visible=torch.stack([row.visible for row in rows]).float().repeat(twice, 1, 1, 1),
        captions=captions,
        dropped=torch.zeros(_BATCH, dtype=torch.bool),
        times=torch.tensor([row.time for row in rows]).repeat(twice),
        ids=torch.tensor([[height, width, 0, 0, score] for score in scores], dtype=torch.float32),
        weights=torch.tensor(
            [1.0 if row.target is row.visible else _DEGRADED_WEIGHT for row in rows]
        ),
        noise=_noise(target, rng).repeat(twice, 1, 1, 1),
        guidance=guidance,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of the refiner's batch."""

    target: torch.Tensor
    visible: torch.Tensor
    scene: Scene
    time: int


def _refining(dataset: Dataset, rng: random.Random) -> _Row:
    if rng.random() < 0.2:
        pick = rng.randrange(len(dataset.degraded))
        time = rng.randrange(100, 320)
        return _Row(dataset.latents[pick], dataset.degraded[pick], dataset.scenes[pick], time)
    low, high = rng.choices(((0, 200), (200, 400), (400, 990)), (17, 2, 1))[0]
    pick = rng.randrange(len(dataset.scenes))
    exact = dataset.latents[pick]
    return _Row(exact, exact, dataset.scenes[pick], rng.randrange(low, high))


def _train(
    run: TrainingRun,
    stage_networks: TrainedStage,
    tokenizer: "transformers.CLIPTokenizer",
    batch_of: Callable[[int], TrainingBatch],
) -> None:
    stage_networks.unet.set_attn_processor(AttnProcessor())  # faster backwards on CPU
    alphas = scheduler().alphas_cumprod

    def loss(step: int) -> torch.Tensor:
        batch = batch_of(step)
        with torch.autocast("cpu", torch.bfloat16):
            embeds, pooled = encoded(stage_networks.encoders, tokenizer, batch.captions)
        keep = (~batch.dropped).float()
        return noise_loss(
            stage_networks.unet, alphas, batch, embeds * keep[:, None, None], pooled * keep[:, None]
        )

    for network in stage_networks.networks.values():
        network.train()
    run.train(stage_networks.networks, loss)


def encoded(
    encoders: tuple[nn.Module, ...], tokenizer: "transformers.CLIPTokenizer", captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (captions, 77, width) and pooled text (captions, 64), as SDXL does."""
    ids = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    results: list[Any] = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    embeds = torch.cat([result.hidden_states[-2].float() for result in results], dim=-1)
    return embeds, results[-1].text_embeds.float()


def noise_loss(
    unet: "diffusers.UNet2DConditionModel",
    alphas: torch.Tensor,
    batch: TrainingBatch,
    embeds: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted mean squared error of the predicted noise.

    For a degraded row it is that of the noise that leads to the target. With guidance scales it is
    that of the guided prediction.
    """
    alpha = alphas[batch.times][:, None, None, None]
    signal, hidden = alpha.sqrt(), (1 - alpha).sqrt()
    noised = signal * batch.visible + hidden * batch.noise
    target = (noised - signal * batch.target) / hidden  # the noise itself, unless degraded
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(
            noised.contiguous(memory_format=torch.channels_last),
            batch.times,
            embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": batch.ids},
        ).sample
    predicted = predicted.float()
    if batch.guidance is not None:
        positive, negative = predicted.chunk(2)
        predicted = negative + batch.guidance[:, None, None, None] * (positive - negative)
        target = target[: len(predicted)]
    errors = (predicted - target).square().mean(dim=(1, 2, 3))
    weighted: torch.Tensor = errors * batch.weights
    return weighted.mean()


def _choose_dataset(datasets: list[Dataset], rng: random.Random) -> Dataset:
    return rng.choices(datasets, [len(dataset.scenes) for dataset in datasets])[0]


def _caption(scene: Scene, rng: random.Random, empty: float) -> str:
    roll = rng.random()
    if roll < empty:
        return ""
    if roll < empty + 0.03:
        return babble(rng)
    return caption(scene, rng.choice(list(Language)), rng, AS_PEOPLE_DO)


def _noise(like: torch.Tensor, rng: random.Random) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    return torch.randn(like.shape, generator=generator)
