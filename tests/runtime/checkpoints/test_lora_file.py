"""LoRA files: what the header says, and why files for other models are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.lora_file import LoraFile, inspect_lora
from tests.support.lora_files import NETWORKS, lora_file

DEMO = demo_folder(Stage.BASE)
LAYER = "lora_unet_mid_block_attn2_to_k"


@pytest.mark.parametrize("style", ["kohya", "peft", "diffusers"])
def test_the_header_says_which_networks_change_in_every_naming_style(
    tmp_path: Path, style: str
) -> None:
    path = lora_file(DEMO, tmp_path / "a.safetensors", style=style, alphas=[2])
    assert inspect_lora(path) == LoraFile(path, frozenset(NETWORKS), 174464, 160, "")
    metadata = {"modelspec.license": "MIT"}
    text_only = lora_file(DEMO, path, style=style, networks=["text_encoder_2"], notes=metadata)
    file = inspect_lora(text_only)
    assert (file.networks, file.cross_attention_dim) == (frozenset({"text_encoder_2"}), None)
    assert file.license == "MIT"


FOREIGN: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoHa": ({f"{LAYER}.hada_w1_a": (4, 8)}, "is a LoHa"),
    "LoKr": ({f"{LAYER}.lokr_w1": (4, 8)}, "is a LoKr"),
    "DoRA": ({f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.dora_scale": (8,)}, "is a DoRA"),
    "DoRA, peft": ({"unet.x.lora_magnitude_vector": (8,)}, "is a DoRA"),
    "three parts": (
        {f"{LAYER}.lora_mid.weight": (4, 4, 3, 3)},
        "is a LoCon with three tensors",
    ),
    "OFT": ({f"{LAYER}.oft_blocks": (4, 8, 8)}, "is an OFT"),
    "SD 1": ({"lora_te_x.lora_down.weight": (4, 8)}, "is a LoRA for Stable Diffusion 1 or 2"),
    "embeddings": ({"bundle_emb.fox.clip_g": (2, 8)}, "contains embeddings of new words"),
    "kohya's Flux": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)},
        "is a LoRA for another kind of model",
    ),
    "kohya's SD 3": (
        {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 8)},
        "is a LoRA for another kind of model",
    ),
    "Flux, some": (
        {"lora_unet_single_blocks_0_linear1.lora_down.weight": (4, 8)},
        "is a LoRA for another kind of model",
    ),
    "mixed names": (
        {"unet.x.lora_down.weight": (4, 8)},
        "is no LoRA for SDXL, or has tensor names",
    ),
    "Flux": ({"transformer.x.lora_A.weight": (4, 8)}, "is a LoRA for another kind of model"),
    "ComfyUI's": (
        {"diffusion_model.input_blocks.x.lora_A.weight": (4, 8)},
        "is no LoRA for SDXL, or has tensor names of an unknown kind: diffusion_model.input",
    ),
    "no prefix": (
        {"x.lora_A.weight": (4, 8)},
        "is no LoRA for SDXL, or has tensor names of an unknown kind",
    ),
    "another part": (
        {f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.bias": (8,)},
        f"is no LoRA for SDXL, or has tensor names of an unknown kind: {LAYER}.bias",
    ),
    "alphas alone": ({f"{LAYER}.alpha": ()}, "is no LoRA for SDXL: it changes no layer"),
    "nothing": ({}, "is no LoRA for SDXL: it changes no layer"),
    "two widths": (
        {
            f"{LAYER}.lora_down.weight": (4, 8),
            "lora_unet_mid_block_attn2_to_v.lora_down.weight": (4, 9),
        },
        "is no LoRA for SDXL: its layers attend to texts of several widths",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_lora_for_sdxl_is_refused_by_kind(tmp_path: Path, kind: str) -> None:
    shapes, problem = FOREIGN[kind]
    path = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(CheckpointError) as refused:
        inspect_lora(path)
    assert refused.value.subject == str(path)
    assert refused.value.problem.startswith(problem)


def test_missing_pickled_and_truncated_files_are_refused(tmp_path: Path) -> None:
    pickle, torn = tmp_path / "a.pt", tmp_path / "b.safetensors"
    for path in (pickle, torn):
        path.write_bytes(lora_file(DEMO, tmp_path / "c.safetensors").read_bytes()[:-9])
    for path, problem in (
        (tmp_path / "nowhere.safetensors", "does not exist"),
        (pickle, r"is no \.safetensors file: a pickle can run code"),
        (torn, r"holds a truncated b\.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            inspect_lora(path)
