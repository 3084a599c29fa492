"""What the courses taught, as two ordinary diffusers folders in half precision.

Knows no training. Each folder is whole, so that either can be copied away and loaded anywhere.
"""

import json
from pathlib import Path

from serve_app.demo.training.unet import Taught, scheduler
from serve_app.runtime.libraries import diffusers, transformers

BASE, REFINER = "demo", "demo-refiner"
LARGEST = 20_000_000  # bytes, both together


def pack(
    home: Path,
    vae: "diffusers.AutoencoderKL",
    words: "transformers.CLIPTokenizer",
    base: Taught,
    refiner: Taught,
    record: dict[str, object],
) -> int:
    """Writes `demo` and `demo-refiner` under `home` and returns their bytes together.

    Raises `ValueError` when they are more than 20 MB.
    """
    vae = vae.half()
    for taught in (base, refiner):
        for network in (taught.unet, *taught.encoders):
            network.half()
    diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=base.encoders[0],
        text_encoder_2=base.encoders[1],
        tokenizer=words,
        tokenizer_2=words,
        unet=base.unet,
        scheduler=scheduler(),
        add_watermarker=False,
    ).save_pretrained(home / BASE)
    diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=refiner.encoders[0],
        tokenizer=None,
        tokenizer_2=words,
        unet=refiner.unet,
        scheduler=scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(home / REFINER)
    for name in (BASE, REFINER):
        (home / name / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        for folder in (home / name).glob("tokenizer*"):
            _spell_out(folder)
    size = sum(f.stat().st_size for n in (BASE, REFINER) for f in (home / n).rglob("*.*"))
    if size > LARGEST:
        raise ValueError(f"the two folders take {size} bytes, more than {LARGEST}")
    return size


def _spell_out(folder: Path) -> None:
    """Adds CLIP's own two files, which readers other than transformers 5 look for."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
