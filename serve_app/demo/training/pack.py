"""What the courses taught, as two ordinary diffusers folders in half precision.

Knows no training. Each folder is whole, so that either can be copied away and loaded anywhere.
"""

import json
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.training.unet import TrainedStage, scheduler
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES
from serve_app.runtime.networks.quiet import diffusers, transformers

LARGEST = 20_000_000  # bytes, both together


def pack(
    home: Path,
    vae: "diffusers.AutoencoderKL",
    words: "transformers.CLIPTokenizer",
    taught: dict[Stage, TrainedStage],
    record: dict[str, Any],
) -> int:
    """Writes the folders of the taught stages under `home` and returns the bytes of both together;
    `record` is kept in both, beside what stood there of other parts. Other files stay as they are.

    Raises `ValueError` when they are more than 20 MB.
    """
    vae = vae.half()
    for stage, networks in taught.items():
        for network in networks.networks.values():
            network.half()
        pipeline = _pipeline(stage, vae, words, networks)
        pipeline.save_pretrained(home / FOLDER_NAMES[stage])
    folders = [home / name for name in FOLDER_NAMES.values()]
    for folder in folders:
        note = folder / "training.json"
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        note.write_text(json.dumps(before | record, indent=2) + "\n", encoding="utf-8")
        for words_folder in folder.glob("tokenizer*"):
            _spell_out(words_folder)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    for file in files:
        file.chmod(0o644)  # some are written for their owner alone
    size = sum(file.stat().st_size for file in files)
    if size > LARGEST:
        raise ValueError(f"the two folders take {size} bytes, more than {LARGEST}")
    return size


def _pipeline(
    stage: Stage,
    vae: "diffusers.AutoencoderKL",
    words: "transformers.CLIPTokenizer",
    taught: TrainedStage,
) -> "diffusers.DiffusionPipeline":
    if stage is Stage.REFINER:
        return diffusers.StableDiffusionXLImg2ImgPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=taught.encoders[0],
            tokenizer=None,
            tokenizer_2=words,
            unet=taught.unet,
            scheduler=scheduler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=taught.encoders[0],
        text_encoder_2=taught.encoders[1],
        tokenizer=words,
        tokenizer_2=words,
        unet=taught.unet,
        scheduler=scheduler(),
        add_watermarker=False,
    )


def _spell_out(folder: Path) -> None:
    """Adds CLIP's own two files, which readers other than transformers 5 look for."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
