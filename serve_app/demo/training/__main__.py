"""The command that makes the demo checkpoint again: `python -m serve_app.demo.training`.

Each part goes on where it was interrupted. `all` trains the autoencoder, paints the gallery, trains
base and refiner side by side, and packs them into the package; on two cores that takes about three
and a half hours. A part may be made anew alone: of what the folder has no course of, what is packed
already is taken and stays.
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
    refiner_run,
    train_base,
    train_refiner,
    untaught,
)
from serve_app.demo.training.vae import finished_vae, train_vae, vae_run
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, WEIGHTS_FOLDER
from serve_app.runtime.networks.quiet import diffusers, transformers


class Part(StrEnum):
    """What to do: everything in order, or one part of it."""

    ALL = "all"
    VAE = "vae"
    GALLERY = "gallery"
    BASE = "base"
    REFINER = "refiner"
    PACK = "pack"


IN_ORDER = ((Part.VAE,), (Part.GALLERY,), (Part.BASE, Part.REFINER), (Part.PACK,))


def train(
    part: Annotated[Part, typer.Argument(help="everything, or one part of it")] = Part.ALL,
    folder: Annotated[Path, typer.Option(help="of states and records")] = Path("models/training"),
    output: Annotated[Path, typer.Option(help="where the checkpoint is packed")] = WEIGHTS_FOLDER,
    seed: Annotated[int, typer.Option(help="of all chance")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of one part")] = os.cpu_count() or 1,
    vae_steps: Annotated[int, typer.Option(help="of the autoencoder's course")] = 5000,
    base_steps: Annotated[int, typer.Option(help="of the base's course")] = 16000,
    refiner_steps: Annotated[int, typer.Option(help="of the refiner's course")] = 14000,
) -> None:
    """Trains the demo checkpoint from scratch."""
    if part is Part.ALL:
        _everything(threads)
        return
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    origin = origin_of(seed)
    courses = {
        Part.VAE: vae_run(folder, origin, vae_steps),
        Part.BASE: base_run(folder, origin, base_steps),
        Part.REFINER: refiner_run(folder, origin, refiner_steps),
    }
    if part is Part.VAE:
        train_vae(courses[Part.VAE])
        return
    vae = finished_vae(courses[Part.VAE], output / FOLDER_NAMES[Stage.BASE] / "vae")
    words = new_tokenizer(folder / f"words-{part}", seed)
    if part is Part.PACK:
        parts = {Part.BASE: Stage.BASE, Part.REFINER: Stage.REFINER}
        if courses[Part.VAE].begun:
            anew = parts  # what has learnt another autoencoder's latents is of no use
            record = {str(Part.VAE): courses[Part.VAE].finished({})}
        else:
            anew = {part: stage for part, stage in parts.items() if courses[part].begun}
            record = {}
        taught = {stage: untaught(stage, words) for stage in anew.values()}
        for begun, stage in anew.items():
            record[str(begun)] = courses[begun].finished(taught[stage].networks)
        size = pack(output, vae, words, taught, record)
        print(f"{output}: {', '.join(record) or 'nothing new'}, {size / 1e6:.1f} MB")
        return
    shelves = build_dataset(vae, folder, seed)
    if part is Part.BASE:
        train_base(courses[Part.BASE], shelves, words)
    elif part is Part.REFINER:
        train_refiner(courses[Part.REFINER], shelves, words)


def _everything(threads: int) -> None:
    """Each part in a process of its own; those that go side by side share the threads."""
    options = [argument for argument in sys.argv[1:] if argument != Part.ALL]

    def begin(part: Part, share: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serve_app.demo.training", part, *options]
        return subprocess.Popen([*command, "--threads", str(share)])

    for together in IN_ORDER:
        share = max(1, threads // len(together))
        ends = [course.wait() for course in [begin(part, share) for part in together]]
        if any(ends):
            raise typer.Exit(1)


def origin_of(seed: int) -> dict[str, Any]:
    """What weights that are made now are made with."""

    def git(*words: str) -> str:
        asked = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return asked.stdout.strip()

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
