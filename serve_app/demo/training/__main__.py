"""Trains the demo checkpoint from scratch: `python -m serve_app.demo.training`.

Each part continues where it was interrupted. `all` trains the VAE, paints the dataset, trains base
and refiner side by side, and packs them into the package; on two cores that takes about three and a
half hours. A part may also be trained alone: the packed weights of the others are used and kept.
"""

import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.training.dataset import build_dataset
from serve_app.demo.training.pack import pack
from serve_app.demo.training.tokenizer import new_tokenizer
from serve_app.demo.training.unet import (
    base_run,
    new_stage,
    refiner_run,
    train_base,
    train_refiner,
)
from serve_app.demo.training.vae import finished_vae, train_vae, vae_run
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, WEIGHTS_FOLDER
from serve_app.runtime.networks.quiet import diffusers, transformers


class Part(StrEnum):
    """All of the training in order, or one part of it."""

    ALL = "all"
    VAE = "vae"
    DATASET = "dataset"
    BASE = "base"
    REFINER = "refiner"
    PACK = "pack"


IN_ORDER = ((Part.VAE,), (Part.DATASET,), (Part.BASE, Part.REFINER), (Part.PACK,))


def train(
    part: Annotated[
        Part, typer.Argument(help="All of the training, or one part of it.")
    ] = Part.ALL,
    folder: Annotated[Path, typer.Option(help="Directory of states and records.")] = Path(
        "models/training"
    ),
    output: Annotated[
        Path, typer.Option(help="Directory that the checkpoint is packed into.")
    ] = WEIGHTS_FOLDER,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of one part.")] = os.cpu_count() or 1,
    vae_steps: Annotated[int, typer.Option(help="Steps of the VAE.")] = 5000,
    base_steps: Annotated[int, typer.Option(help="Steps of base.")] = 16000,
    refiner_steps: Annotated[int, typer.Option(help="Steps of the refiner.")] = 14000,
) -> None:
    """Train the demo checkpoint from scratch."""
    if part is Part.ALL:
        _everything(threads)
        return
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    origin = origin_of(seed)
    runs = {
        Part.VAE: vae_run(folder, origin, vae_steps),
        Part.BASE: base_run(folder, origin, base_steps),
        Part.REFINER: refiner_run(folder, origin, refiner_steps),
    }
    if part is Part.VAE:
        train_vae(runs[Part.VAE])
        return
    vae = finished_vae(runs[Part.VAE], output / FOLDER_NAMES[Stage.BASE] / "vae")
    tokenizer = new_tokenizer(folder / f"words-{part}", seed)
    if part is Part.PACK:
        parts = {Part.BASE: Stage.BASE, Part.REFINER: Stage.REFINER}
        if runs[Part.VAE].begun:
            retrained = parts  # they depend on the latents of the VAE
            record = {str(Part.VAE): runs[Part.VAE].finished({})}
        else:
            retrained = {part: stage for part, stage in parts.items() if runs[part].begun}
            record = {}
        trained = {stage: new_stage(stage, tokenizer) for stage in retrained.values()}
        for begun, stage in retrained.items():
            record[str(begun)] = runs[begun].finished(trained[stage].networks)
        size = pack(output, vae, tokenizer, trained, record)
        print(f"{output}: {', '.join(record) or 'nothing new'}, {size / 1e6:.1f} MB")
        return
    datasets = build_dataset(vae, folder, seed)
    if part is Part.BASE:
        train_base(runs[Part.BASE], datasets, tokenizer)
    elif part is Part.REFINER:
        train_refiner(runs[Part.REFINER], datasets, tokenizer)


def _everything(threads: int) -> None:
    """Run each part in a process of its own; parts that run side by side share the threads."""
    options = [argument for argument in sys.argv[1:] if argument != Part.ALL]

    def begin(part: Part, share: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serve_app.demo.training", part, *options]
        return subprocess.Popen([*command, "--threads", str(share)])

    for together in IN_ORDER:
        share = max(1, threads // len(together))
        ends = [run.wait() for run in [begin(part, share) for part in together]]
        if any(ends):
            raise typer.Exit(1)


def origin_of(seed: int) -> dict[str, Any]:
    """Return what decides the weights besides the code: seed, commit and versions."""

    def git(*args: str) -> str:
        result = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    return {
        "seed": seed,
        "commit": git("rev-parse", "HEAD"),
        "changed since": bool(git("status", "--porcelain", "--", "serve_app/demo")),
        "torch": str(torch.__version__),  # a plain string, which torch.load trusts
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    typer.run(train)
