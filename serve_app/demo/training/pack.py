"""Packs trained networks as two ordinary diffusers folders in half precision.

Each folder is complete, so that either can be copied and loaded anywhere.
"""

import json
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.training.unet import TrainedStage, scheduler
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES
from serve_app.runtime.networks.quiet import diffusers, transformers

MAX_BYTES = 20_000_000  # bytes, both together


def pack(
    folder: Path,
    vae: "diffusers.AutoencoderKL",
    tokenizer: "transformers.CLIPTokenizer",
    trained: dict[Stage, TrainedStage],
    record: dict[str, Any],
) -> int:
    """Write the folders of the trained stages under `folder`; return the bytes of both folders.

    `record` is merged into the `training.json` of both. Other files stay as they are. Raises
    `ValueError` if the folders take more than 20 MB.
    """
    vae = vae.half()
    for stage, networks in trained.items():
        for network in networks.networks.values():
            network.half()
        pipeline = _pipeline(stage, vae, tokenizer, networks)
        pipeline.save_pretrained(folder / FOLDER_NAMES[stage])
    stage_folders = [folder / name for name in FOLDER_NAMES.values()]
    for stage_folder in stage_folders:
        note = stage_folder / "training.json"
        previous = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        note.write_text(json.dumps(previous | record, indent=2) + "\n", encoding="utf-8")
        for tokenizer_folder in stage_folder.glob("tokenizer*"):
            _write_clip_files(tokenizer_folder)
    files = [
        file for stage_folder in stage_folders for file in stage_folder.rglob("*") if file.is_file()
    ]
    for file in files:
        file.chmod(0o644)  # some are written with owner access only
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise ValueError(f"the two folders take {size} bytes, more than {MAX_BYTES}")
    return size


def _pipeline(
    stage: Stage,
    vae: "diffusers.AutoencoderKL",
    tokenizer: "transformers.CLIPTokenizer",
    trained: TrainedStage,
) -> "diffusers.DiffusionPipeline":
    if stage is Stage.REFINER:
        return diffusers.StableDiffusionXLImg2ImgPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=trained.encoders[0],
            tokenizer=None,
            tokenizer_2=tokenizer,
            unet=trained.unet,
            scheduler=scheduler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=trained.encoders[0],
        text_encoder_2=trained.encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=trained.unet,
        scheduler=scheduler(),
        add_watermarker=False,
    )


def _write_clip_files(folder: Path) -> None:
    """Add CLIP's own two files, which readers other than transformers 5 need."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
