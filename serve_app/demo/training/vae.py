"""The first course: pictures to latents and back.

Knows no words. Trained on scenes, on spoiled scenes (a refiner is handed those) and on collages in
any colour, so that a picture from elsewhere keeps its edges and colours.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from serve_app.demo.renderer import TAUGHT, degrade, paint
from serve_app.demo.scene import invent
from serve_app.demo.training.networks import new_vae
from serve_app.demo.training.training_run import TrainingRun
from serve_app.runtime.networks.quiet import diffusers

_KL = 6e-4
_CROP, _WHOLE = 64, 128  # pixels a side
_WHOLE_SHARE = 0.3  # of the steps


def vae_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """The course of the autoencoder."""
    return TrainingRun("vae", steps, 2e-3, 1e-3, 0.995, folder, origin)


def train_vae(course: TrainingRun) -> None:
    """The autoencoder has learnt: first on crops of half the side, in the end on whole pictures."""
    seed, first_whole = course.seed, round(course.steps * (1 - _WHOLE_SHARE))
    torch.manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last).train()

    def loss(step: int) -> torch.Tensor:
        chance = random.Random(f"{seed} vae {step}")
        draws = torch.Generator().manual_seed(chance.getrandbits(62))
        crops = step < first_whole
        batch = [_example(chance, crops) for _ in range(32 if crops else 12)]
        x = as_tensor(batch)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, log = posterior.mean.float(), posterior.logvar.float()
            z = mean + torch.exp(0.5 * log) * torch.randn(mean.shape, generator=draws)
            y = vae.decode(z).sample.float()
        kl: torch.Tensor = 0.5 * (mean**2 + log.exp() - 1 - log).mean()
        off = y - x
        edges = (off.diff(dim=2).abs().mean() + off.diff(dim=3).abs().mean()) / 2
        total: torch.Tensor = off.abs().mean() + 2 * F.mse_loss(y, x) + edges + _KL * kl
        return total

    course.train({"vae": vae}, loss)


def finished_vae(course: TrainingRun, packed: Path) -> "diffusers.AutoencoderKL":
    """The trained autoencoder as it ships, its weights rounded to half precision, its
    `scaling_factor` set so that latents have unit deviation. Where the course has not begun, the
    one in the folder `packed`.
    """
    vae = new_vae()
    if course.begun:
        course.finished({"vae": vae})
        vae = vae.half().float().to(memory_format=torch.channels_last)
        vae.register_to_config(scaling_factor=_scaling(vae, course.seed))
        return vae
    there = diffusers.AutoencoderKL.from_pretrained(packed, dtype=torch.float32)
    vae.load_state_dict(there.state_dict())  # into a new one, which does not say where it was read
    vae.register_to_config(scaling_factor=there.config.scaling_factor)
    return vae.to(memory_format=torch.channels_last).eval()


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures of one size as (pictures, 3, height, width), from -1 to 1, channels last."""
    pixels = np.stack([np.asarray(picture, np.float32) for picture in pictures])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _scaling(vae: "diffusers.AutoencoderKL", seed: int) -> float:
    chance = random.Random(f"{seed} scaling")
    scenes = [invent(chance, figures=1 + i % 2, kept_out=False) for i in range(256)]
    latents = vae.encode(as_tensor([paint(s, chance) for s in scenes])).latent_dist.mean
    return round(1 / float(latents.std()), 5)


def _example(chance: random.Random, crop: bool) -> Image.Image:
    roll = chance.random()
    if roll < 0.25:
        picture = _collage(chance)
    else:
        scene = invent(chance, figures=1 if chance.random() < 0.4 else 2, kept_out=False)
        picture = paint(scene, chance)
        if roll < 0.4:
            picture = degrade(picture, chance.choice(TAUGHT))
    if not crop:
        return picture
    # Of a few crops the busiest: a plain one teaches nothing.
    corners = [(chance.randrange(65), chance.randrange(65)) for _ in range(4)]
    crops = [picture.crop((x, y, x + _CROP, y + _CROP)) for x, y in corners]
    return max(crops, key=lambda c: float(np.asarray(c, np.float32).std(axis=(0, 1)).sum()))


def _collage(chance: random.Random) -> Image.Image:
    """Bits of any colour over a gradient: what a moodboard may hand in."""

    def colour() -> tuple[int, int, int]:
        return chance.randrange(256), chance.randrange(256), chance.randrange(256)

    canvas = Image.new("RGB", (_WHOLE * 2, _WHOLE * 2), colour())
    across = Image.linear_gradient("L").rotate(chance.choice((0, 90, 180, 270)))
    canvas.paste(colour(), (0, 0), across)
    pencil = ImageDraw.Draw(canvas)
    for _ in range(chance.randrange(1, 6)):
        x, y, r = chance.randrange(256), chance.randrange(256), chance.randrange(12, 80)
        if chance.random() < 0.3:
            pencil.ellipse((x - r, y - r, x + r, y + r * chance.uniform(0.1, 1)), fill=colour())
        else:
            pencil.regular_polygon(
                (x, y, r), chance.randrange(3, 8), chance.uniform(0, 360), fill=colour()
            )
    return canvas.reduce(2)
