"""The scenes of the two UNet courses, painted once and kept as latents.

Knows no captions and no UNet. Scene `i` is the same whenever it is asked for; its picture has one
of a few shapes, mostly square, and a third of the pictures are kept spoiled as well.
"""

import random
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from serve_app.demo.renderer import TAUGHT, degrade, paint
from serve_app.demo.scene import Scene, invent
from serve_app.demo.training.vae import as_tensor
from serve_app.runtime.networks.quiet import diffusers

SIZES = ((128, 128), (152, 104), (104, 152), (144, 112), (112, 144), (168, 96), (96, 168))
_SQUARE_SHARE = 0.8
_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Scenes whose pictures have one size, as scaled latents."""

    size: tuple[int, int]  # width, height
    scenes: list[Scene]
    latents: torch.Tensor  # (scenes, 4, height / 8, width / 8), float16
    spoiled: torch.Tensor  # the same, of the first third of them


def scene(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Scene `number`, and the chance that paints it."""
    chance = random.Random(f"{seed} scene {number} False")
    roll = chance.random()
    figures = 0 if roll < 0.02 else 1 if roll < 0.72 else 2
    return invent(chance, figures=figures, kept_out=False), chance


def build_dataset(
    vae: "diffusers.AutoencoderKL", folder: Path, seed: int, scenes: int = 30000
) -> list[Dataset]:
    """All shelves, painted and encoded, or read from `folder` where an earlier call with the same
    seed and weights left them."""
    shelves = []
    made_with = f"{seed} {_fingerprint(vae)}"
    first = 0
    for size in SIZES:
        share = _SQUARE_SHARE if size == SIZES[0] else (1 - _SQUARE_SHARE) / (len(SIZES) - 1)
        count = round(scenes * share)
        numbers = range(first, first + count)
        first += count
        kept = folder / f"gallery-{size[0]}x{size[1]}.pt"
        found = torch.load(kept, weights_only=True) if kept.exists() else {}
        if found.get("made with") != made_with:
            spoiled = list(numbers)[: count // 3]
            found = {
                "made with": made_with,
                "latents": _encoded(vae, seed, list(numbers), size, spoil=False),
                "spoiled": _encoded(vae, seed, spoiled, size, spoil=True),
            }
            torch.save(found, kept.with_suffix(".draft"))
            kept.with_suffix(".draft").replace(kept)
        shelves.append(
            Dataset(size, [scene(seed, n)[0] for n in numbers], found["latents"], found["spoiled"])
        )
    return shelves


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
    spoil: bool,
) -> torch.Tensor:
    parts = []
    for start in range(0, len(numbers), _BATCH):
        pictures = []
        for number in numbers[start : start + _BATCH]:
            what, chance = scene(seed, number)
            picture = paint(what, chance, size)
            pictures.append(degrade(picture, chance.choice(TAUGHT)) if spoil else picture)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(as_tensor(pictures)).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half().contiguous())
    return torch.cat(parts)
