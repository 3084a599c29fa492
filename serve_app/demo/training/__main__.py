"""The command that trains the demo checkpoint: `python -m serve_app.demo.training`.

Each course goes on where it was interrupted. `all` trains the autoencoder on every core, then base
and refiner side by side, and packs them; on two cores that takes about three hours.
"""

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from serve_app.demo.training.gallery import shelve
from serve_app.demo.training.pack import pack
from serve_app.demo.training.unet import train_base, train_refiner
from serve_app.demo.training.vae import train_vae
from serve_app.demo.training.words import new_tokenizer
from serve_app.runtime.libraries import diffusers, transformers

SEED = 1


class What(StrEnum):
    """What to do: one course, the packing, or everything in order."""

    VAE = "vae"
    BASE = "base"
    REFINER = "refiner"
    PACK = "pack"
    ALL = "all"


def train(
    what: Annotated[What, typer.Argument(help="a course, the packing, or everything")] = What.ALL,
    folder: Annotated[Path, typer.Option(help="of states, records and results")] = Path("models"),
    seed: Annotated[int, typer.Option(help="of all chance")] = SEED,
    threads: Annotated[int, typer.Option(help="CPU threads of one course")] = os.cpu_count() or 1,
    vae_steps: Annotated[int, typer.Option(help="of the autoencoder's course")] = 5000,
    base_steps: Annotated[int, typer.Option(help="of the base's course")] = 16000,
    refiner_steps: Annotated[int, typer.Option(help="of the refiner's course")] = 14000,
) -> None:
    """Trains the demo checkpoint from scratch."""
    if what is What.ALL:
        _all_in_order(threads)
        return
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    if what is not What.PACK:
        _remember(folder / f"{what}.record.json", seed)
    vae = train_vae(folder, seed, vae_steps)
    if what is What.VAE:
        return
    shelves = shelve(vae, folder, seed)
    words = new_tokenizer(folder / "words", seed)
    if what is What.BASE:
        train_base(shelves, words, folder, seed, base_steps)
    elif what is What.REFINER:
        train_refiner(shelves, words, folder, seed, refiner_steps)
    else:
        size = pack(
            folder,
            vae,
            words,
            train_base(shelves, words, folder, seed, base_steps),
            train_refiner(shelves, words, folder, seed, refiner_steps),
            {
                "steps": {"vae": vae_steps, "base": base_steps, "refiner": refiner_steps},
                "courses": {
                    name: json.loads((folder / f"{name}.record.json").read_text())
                    for name in (What.VAE, What.BASE, What.REFINER)
                },
            },
        )
        print(f"{folder}: base and refiner, {size / 1e6:.1f} MB")


def _all_in_order(threads: int) -> None:
    """Each course in a process of its own, the two UNets at once, each with half the threads."""
    options = [argument for argument in sys.argv[1:] if argument != What.ALL]

    def begin(what: What, share: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serve_app.demo.training", what, *options]
        return subprocess.Popen([*command, "--threads", str(share)])

    for together in ((What.VAE,), (What.BASE, What.REFINER), (What.PACK,)):
        share = max(1, threads // len(together))
        if any([course.wait() for course in [begin(what, share) for what in together]]):
            raise typer.Exit(1)


def _remember(record: Path, seed: int) -> None:
    """Notes what made these weights, when a course begins."""
    if record.exists():
        return

    def git(*words: str) -> str:
        asked = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return asked.stdout.strip()

    record.write_text(
        json.dumps(
            {
                "seed": seed,
                "commit": git("rev-parse", "HEAD"),
                "changed since": bool(git("status", "--porcelain", "--", "serve_app/demo")),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    typer.run(train)
