"""The smallest checkpoints that are SDXL in every part: 0.2 MB, of random numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.network_weights import folder_specs, read_config

TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [4, 4, 8],
        "norm_num_groups": 2,
        "attention_head_dim": 2,
        "addition_time_embed_dim": 4,
    },
    "vae": {"block_out_channels": [2, 2, 4, 4], "norm_num_groups": 2},
    "text_encoder": {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2},
    "text_encoder_2": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 4,
    },
}
UNET_OF_STAGE = {  # 6 or 5 numbers about the image's size
    Stage.BASE: {"cross_attention_dim": 12, "projection_class_embeddings_input_dim": 28},
    Stage.REFINER: {"cross_attention_dim": 8, "projection_class_embeddings_input_dim": 24},
}


def tiny_checkpoint(folder: Path, stage: Stage = Stage.BASE, *, seed: int = 0) -> Path:
    """Write a checkpoint with the demo's blocks, a few channels wide."""
    shutil.copytree(demo_folder(stage), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for network, values in TINY.items():
        if (folder / network).is_dir():
            changes = values | (UNET_OF_STAGE[stage] if network == "unet" else {})
            edit_json(folder / network / "config.json", **changes)
            write_weights(folder, network, seed=seed)
    return folder


def write_weights(folder: Path, network: str, *, seed: int = 0) -> Path:
    """Write random weights for the config of a network."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        spec.sources[0].name: (0.1 * torch.randn(spec.shape, generator=generator)).half()
        for spec in folder_specs(read_config(folder, network))
    }
    stem = "diffusion_pytorch_model" if network in ("unet", "vae") else "model"
    file = folder / network / f"{stem}.safetensors"
    save_file(tensors, file, {"format": "pt"})
    return file


def edit_json(file: Path, **changes: object) -> None:
    """Change some values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
