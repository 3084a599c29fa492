"""Checkpoints beside the demo: with other weights, and broken ones."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

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


def with_scheduler(folder: Path, copy: Path, name: str, options: Mapping[str, Any]) -> Path:
    """Copy a checkpoint folder, with a scheduler of that class in place of its own.

    `options` are added to those of a discrete class, and are all that an EDM class has.
    """
    shutil.copytree(folder, copy)
    file = copy / "scheduler" / "scheduler_config.json"
    own = {} if name.startswith("EDM") else json.loads(file.read_text())
    file.write_text(json.dumps({**own, **options, "_class_name": name}))
    edit_json(copy / "model_index.json", scheduler=["diffusers", name])
    return copy


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of the object in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def in_hub_cache(folder: Path, cache: Path, repository: str, commit: str = "7" * 40) -> Path:
    """Copy a checkpoint folder into a cache of the model hub, and return its repository's folder.

    Files are links into `blobs`, and refs/main names the commit, as huggingface_hub leaves them.
    Neither the card nor the licence are there: `DiffusionPipeline.from_pretrained` skips them.
    """
    home = cache / f"models--{repository.replace('/', '--')}"
    files = [folder / "model_index.json", *folder.glob("*/*")]
    for file in files:
        blob = home / "blobs" / f"{commit[0]}-{'-'.join(file.relative_to(folder).parts)}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = home / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    return home


def broken_checkpoint(kind: str, home: Path) -> tuple[Path, str]:
    """Return a folder that holds no complete checkpoint, and what the error must say."""
    folder = home / "sdxl-base"
    if kind == "missing":
        return folder, "does not exist"
    shutil.copytree(demo_folder(Stage.BASE), folder)
    if kind == "incomplete":
        shutil.rmtree(folder / "vae")
        return folder, "lacks its folder vae"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    return folder, "holds a pickle in unet"


def change_tensors(
    file: Path,
    *,
    without: str | None = None,
    change: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Rewrite a weight file with one tensor less, or with some of its tensors changed."""
    tensors = load_file(file) | dict(change or {})
    save_file({name: t for name, t in tensors.items() if name != without}, file, {"format": "pt"})


def shard(file: Path, count: int) -> list[str]:
    """Split a weight file into shards with an index; return their names."""
    tensors = load_file(file)
    names = [f"{file.stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    placed = {name: names[number % count] for number, name in enumerate(sorted(tensors))}
    for shard_name in names:
        part = {name: tensor for name, tensor in tensors.items() if placed[name] == shard_name}
        save_file(part, file.with_name(shard_name), {"format": "pt"})
    index = {"metadata": {}, "weight_map": placed}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    return names


def write_safety_checker(folder: Path) -> Path:
    """Write a safety checker of random numbers, in diffusers' layout."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=4))
    checker.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder
