"""SDXL's own architecture with random weights: what a step costs does not depend on their values.

So the full size is measured without a download. Configs and shapes are those of
stabilityai/stable-diffusion-xl-base-1.0; tokenizers and scheduler are the demo's.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.network_weights import folder_specs, read_config
from serve_app.runtime.checkpoints.tensor_layout import TensorSpec

SDXL_BASE: dict[str, dict[str, Any]] = {  # where they differ from the demo's
    "unet": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "norm_num_groups": 32,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
        "mid_block_add_attention": True,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
}
_BLOCK = 1 << 20  # random numbers that are drawn; larger tensors repeat them
_DTYPE, _DTYPE_NAME = torch.float16, "F16"


def write_random_checkpoint(
    folder: Path, configs: Mapping[str, Mapping[str, Any]] = SDXL_BASE, *, seed: int = 0
) -> Path:
    """Write a base checkpoint in diffusers' layout, in fp16, and return its folder.

    `configs` has what is unlike the demo, by network. A full one takes 6.9 GB. Raises
    `OperatorError` when the disk has no room for it.
    """
    specs = write_configs(folder, configs)
    size = sum(num_bytes(spec) for tensors in specs.values() for spec in tensors)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OperatorError(
            f"has {free / 1e9:.1f} GB free, and a checkpoint of {size / 1e9:.1f} GB is made there",
            subject=str(folder),
            remedy="Set TMPDIR to a folder with more room",
        )
    numbers = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    for network, tensors in specs.items():
        stem = "diffusion_pytorch_model" if network in ("unet", "vae") else "model"
        _write(folder / network / f"{stem}.safetensors", tensors, numbers)
    return folder


def write_configs(
    folder: Path, configs: Mapping[str, Mapping[str, Any]] = SDXL_BASE
) -> dict[str, list[TensorSpec]]:
    """Write a checkpoint without its weights, and return the tensors that each network lacks."""
    demo = demo_folder(Stage.BASE)
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    specs = {}
    for network, changes in configs.items():
        file = folder / network / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        specs[network] = list(folder_specs(read_config(folder, network)))
    return specs


def num_bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor's data."""
    return prod(spec.shape) * _DTYPE.itemsize


def _write(file: Path, specs: Iterable[TensorSpec], numbers: torch.Tensor) -> None:
    """Write a safetensors file tensor by tensor, so that a network is never in memory."""
    specs, header, end = list(specs), {}, 0
    for spec in specs:
        start, end = end, end + num_bytes(spec)
        header[spec.sources[0].name] = {
            "dtype": _DTYPE_NAME,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            stream.write(_values(spec, numbers).numpy().data)


def _values(spec: TensorSpec, numbers: torch.Tensor) -> torch.Tensor:
    """Return values with which a deep network's activations neither vanish nor overflow."""
    size = prod(spec.shape)
    if len(spec.shape) == 1:  # norms' weights are one, and all biases zero
        return torch.full(spec.shape, float(spec.name.endswith("weight")), dtype=_DTYPE)
    scaled: torch.Tensor = (numbers / prod(spec.shape[1:]) ** 0.5).to(_DTYPE)
    return scaled.repeat(-(-size // _BLOCK))[:size]
