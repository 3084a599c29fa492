"""Training of the VAE: images to latents and back.

It learns from scenes, from degraded scenes, which the refiner gets, and from collages in any
colour, so that images from elsewhere keep their edges and colours.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from serve_app.demo.renderer import TRAINED_DEGRADATIONS, degrade, paint
from serve_app.demo.scene import invent
from serve_app.demo.training.networks import new_vae
from serve_app.demo.training.training_run import TrainingRun
from serve_app.runtime.networks.quiet import diffusers

_KL = 6e-4
_CROP, _WHOLE = 64, 128  # pixels a side
_WHOLE_SHARE = 0.3  # of the steps


def vae_run(folder: Path, origin: Mapping[str, Any], steps: int) -> TrainingRun:
    """Return the training run of the VAE."""
    return TrainingRun("vae", steps, 2e-3, 1e-3, 0.995, folder, origin)


def train_vae(run: TrainingRun) -> None:
    """Train the VAE, first on crops of half the side, then on whole images."""
    seed, first_whole = run.seed, round(run.steps * (1 - _WHOLE_SHARE))
    torch.manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last).train()

    def loss(step: int) -> torch.Tensor:
        rng = random.Random(f"{seed} vae {step}")
        draws = torch.Generator().manual_seed(rng.getrandbits(62))
        crops = step < first_whole
        batch = [_example(rng, crops) for _ in range(32 if crops else 12)]
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

    run.train({"vae": vae}, loss)


def finished_vae(run: TrainingRun, packed: Path) -> "diffusers.AutoencoderKL":
    """Return the trained VAE as it ships, or the one in the folder `packed` if there is no run.

    Weights are rounded to half precision, and `scaling_factor` gives latents unit deviation.
    """
    vae = new_vae()
    if run.begun:
        run.finished({"vae": vae})
        vae = vae.half().float().to(memory_format=torch.channels_last)
        vae.register_to_config(scaling_factor=_scaling(vae, run.seed))
        return vae
    shipped = diffusers.AutoencoderKL.from_pretrained(packed, dtype=torch.float32)
    vae.load_state_dict(shipped.state_dict())  # a new VAE does not record its path
    vae.register_to_config(scaling_factor=shipped.config.scaling_factor)
    return vae.to(memory_format=torch.channels_last).eval()


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Return images of one size as (images, 3, height, width), from -1 to 1, channels last."""
    pixels = np.stack([np.asarray(picture, np.float32) for picture in pictures])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _scaling(vae: "diffusers.AutoencoderKL", seed: int) -> float:
    rng = random.Random(f"{seed} scaling")
    scenes = [invent(rng, figures=1 + i % 2, kept_out=False) for i in range(256)]
    latents = vae.encode(as_tensor([paint(s, rng) for s in scenes])).latent_dist.mean
    return round(1 / float(latents.std()), 5)


def _example(rng: random.Random, crop: bool) -> Image.Image:
    roll = rng.random()
    if roll < 0.25:
        picture = _collage(rng)
    else:
        scene = invent(rng, figures=1 if rng.random() < 0.4 else 2, kept_out=False)
        picture = paint(scene, rng)
        if roll < 0.4:
            picture = degrade(picture, rng.choice(TRAINED_DEGRADATIONS))
    if not crop:
        return picture
    # The crop with the most contrast of four: a plain one teaches nothing.
    corners = [(rng.randrange(65), rng.randrange(65)) for _ in range(4)]
    crops = [picture.crop((x, y, x + _CROP, y + _CROP)) for x, y in corners]
    return max(crops, key=lambda c: float(np.asarray(c, np.float32).std(axis=(0, 1)).sum()))


def _collage(rng: random.Random) -> Image.Image:
    """Return shapes of any colour over a gradient, such as an image from a moodboard."""

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    canvas = Image.new("RGB", (_WHOLE * 2, _WHOLE * 2), colour())
    across = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270)))
    canvas.paste(colour(), (0, 0), across)
    pencil = ImageDraw.Draw(canvas)
    for _ in range(rng.randrange(1, 6)):
        x, y, r = rng.randrange(256), rng.randrange(256), rng.randrange(12, 80)
        if rng.random() < 0.3:
            pencil.ellipse((x - r, y - r, x + r, y + r * rng.uniform(0.1, 1)), fill=colour())
        else:
            pencil.regular_polygon(
                (x, y, r), rng.randrange(3, 8), rng.uniform(0, 360), fill=colour()
            )
    return canvas.reduce(2)
