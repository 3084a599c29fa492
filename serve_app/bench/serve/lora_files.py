"""LoRAs of random numbers for the demo checkpoint: they cost what trained ones cost."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder

_RANK = 4
_LAYERS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
_SIZE = 0.05  # of the change, where the weights' own is about 1


def write_loras(folder: Path, count: int) -> dict[str, Path]:
    """Write so many LoRAs of the attention layers, in PEFT's format; return the files by name."""
    files = {f"lora{number}": folder / f"lora{number}.safetensors" for number in range(count)}
    for seed, file in enumerate(files.values()):
        save_file(_weights(torch.Generator().manual_seed(seed)), file)
    return files


def _weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    weights = {}
    for layer, (outputs, inputs) in _attention_layers():
        down = torch.randn(_RANK, inputs, generator=generator) * _SIZE / _RANK
        up = torch.randn(outputs, _RANK, generator=generator) / inputs**0.5
        weights[f"unet.{layer}.lora_A.weight"] = down
        weights[f"unet.{layer}.lora_B.weight"] = up
    return weights


def _attention_layers() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each attention layer of the demo's UNet, with its outputs and inputs."""
    (file,) = sorted((demo_folder(Stage.BASE) / "unet").glob("*.safetensors"))
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            if name.endswith(_LAYERS):
                outputs, inputs = tensors.get_slice(name).get_shape()
                yield name.removesuffix(".weight"), (outputs, inputs)
