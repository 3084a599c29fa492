"""Fine-tunes of the demo: the same architecture with other weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


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
