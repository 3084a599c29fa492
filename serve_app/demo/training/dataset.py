"""The dataset of the two UNet runs: scenes, painted once and stored as latents.

Scene `i` is the same at every call. Images have one of a few aspect ratios, mostly square, and a
third of them are stored degraded as well.
"""

import random
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from serve_app.demo.renderer import TRAINED_DEGRADATIONS, degrade, paint
from serve_app.demo.scene import Scene, invent
from serve_app.demo.training.vae import as_tensor
from serve_app.runtime.networks.quiet import diffusers

SIZES = ((128, 128), (152, 104), (104, 152), (144, 112), (112, 144), (168, 96), (96, 168))
_SQUARE_SHARE = 0.8
_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Scenes whose images have one size, as scaled latents."""

    size: tuple[int, int]  # width, height
    scenes: list[Scene]
    latents: torch.Tensor  # (scenes, 4, height / 8, width / 8), float16
    degraded: torch.Tensor  # the same, for the first third of the scenes


def scene(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Return scene `number`, and the random generator that paints it."""
    rng = random.Random(f"{seed} scene {number} False")
    roll = rng.random()
    figures = 0 if roll < 0.02 else 1 if roll < 0.72 else 2
    return invent(rng, figures=figures, kept_out=False), rng


def build_dataset(
    vae: "diffusers.AutoencoderKL", folder: Path, seed: int, scenes: int = 30000
) -> list[Dataset]:
    """Paint and encode the datasets of all sizes, or read those of an earlier call.

    `folder` caches them; a file of another seed or other VAE weights is replaced.
    """
    datasets = []
    made_with = f"{seed} {_fingerprint(vae)}"
    first = 0
    for size in SIZES:
        share = _SQUARE_SHARE if size == SIZES[0] else (1 - _SQUARE_SHARE) / (len(SIZES) - 1)
        count = round(scenes * share)
        numbers = range(first, first + count)
        first += count
        file = folder / f"dataset-{size[0]}x{size[1]}.pt"
        stored = torch.load(file, weights_only=True) if file.exists() else {}
        if stored.get("made with") != made_with:
            degraded = list(numbers)[: count // 3]
            stored = {
                "made with": made_with,
                "latents": _encoded(vae, seed, list(numbers), size, degraded=False),
                "degraded": _encoded(vae, seed, degraded, size, degraded=True),
            }
            torch.save(stored, file.with_suffix(".draft"))
            file.with_suffix(".draft").replace(file)
        datasets.append(
            Dataset(
                size, [scene(seed, n)[0] for n in numbers], stored["latents"], stored["degraded"]
            )
        )
    return datasets


def _fingerprint(vae: "diffusers.AutoencoderKL") -> str:
    digest = sha256()
    for weight in vae.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def _encoded(
    vae: "diffusers.AutoencoderKL",
    seed: int,
    numbers: list[int],
    size: tuple[int, int],
    *,
    degraded: bool,
) -> torch.Tensor:
    parts = []
    for start in range(0, len(numbers), _BATCH):
        images = []
        for number in numbers[start : start + _BATCH]:
            what, rng = scene(seed, number)
            image = paint(what, rng, size)
            images.append(degrade(image, rng.choice(TRAINED_DEGRADATIONS)) if degraded else image)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(as_tensor(images)).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half().contiguous())
    return torch.cat(parts)
