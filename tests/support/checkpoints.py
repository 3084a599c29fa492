"""Checkpoints beside the demo: with other weights, and broken ones."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder


def perturbed(folder: Path, copy: Path, *, seed: int = 0, by: float = 0.05) -> Path:
    """Copy a checkpoint folder, and scale every UNet weight by 1 + `by` * noise."""
    shutil.copytree(folder, copy)
    generator = torch.Generator().manual_seed(seed)
    for file in (copy / "unet").glob("*.safetensors"):
        weights = load_file(file)
        for name, tensor in weights.items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            weights[name] = tensor * (1 + by * noise)
        save_file(weights, file)
    return copy


def broken_checkpoint(kind: str, home: Path) -> tuple[Path, str]:
    """Return a folder that holds no complete checkpoint, and what the error must say."""
    folder = home / "sdxl"
    if kind == "missing":
        return folder, "does not exist"
    shutil.copytree(demo_folder(Stage.BASE), folder)
    if kind == "incomplete":
        shutil.rmtree(folder / "vae")
        return folder, "lacks its folder vae"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    return folder, "holds a pickle in unet"
