"""The tensors that a config asks for are those of the modules in diffusers and transformers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from serve_app.runtime.checkpoints.clip_configs import (
    ProjectedTextEncoderConfig,
    SafetyCheckerConfig,
    TextEncoderConfig,
)
from serve_app.runtime.checkpoints.clip_layout import safety_checker_tensors
from serve_app.runtime.checkpoints.diffusion_configs import UNetConfig, VaeConfig
from serve_app.runtime.checkpoints.network_config import NetworkConfig, read_network_config
from serve_app.runtime.checkpoints.network_weights import folder_specs

Shapes = dict[str, tuple[int, ...]]
DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
BASE: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = BASE | {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
UNETS: dict[str, dict[str, Any]] = {
    "SDXL": BASE,
    "SDXL's refiner": REFINER,
    "convolutions as projections": BASE | {"use_linear_projection": False},
    "one layer": BASE | {"layers_per_block": 1},
    "layers by block": BASE | {"layers_per_block": [1, 3, 2]},
    "attention everywhere": BASE
    | {"down_block_types": [CROSS_DOWN] * 3, "up_block_types": [CROSS_UP] * 3},
    "a distilled one without a middle": BASE
    | {"mid_block_type": None, "transformer_layers_per_block": [0, 2, 4]},
    "a middle without attention": BASE | {"mid_block_type": "UNetMidBlock2D"},
    "transformers by layer, as in SSD-1B": BASE
    | {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "a time embedding of its own width": BASE | {"time_embedding_dim": 512},
    "a list of equal widths": BASE | {"cross_attention_dim": [2048, 2048, 2048]},
    "one number of heads": BASE | {"attention_head_dim": 8},
    "one block": BASE
    | {
        "block_out_channels": [64],
        "down_block_types": [CROSS_DOWN],
        "up_block_types": [CROSS_UP],
        "transformer_layers_per_block": 1,
        "attention_head_dim": 4,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
VAES: dict[str, dict[str, Any]] = {
    "SDXL": VAE,
    "no attention": VAE | {"mid_block_add_attention": False},
    "no quant convolutions": VAE | {"use_quant_conv": False, "use_post_quant_conv": False},
    "one layer": VAE | {"layers_per_block": 1},
    "three": VAE | {"layers_per_block": 3, "block_out_channels": [32, 64, 64, 96]},
}
CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
BIG_G = CLIP | {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}
CLIPS: dict[str, dict[str, Any]] = {
    "ViT-L": CLIP,
    "bigG": BIG_G | {"num_hidden_layers": 32, "projection_dim": 1280},
    "defaults": {},
    "small": CLIP
    | {
        "num_hidden_layers": 1,
        "vocab_size": 99,
        "eos_token_id": 98,
        "max_position_embeddings": 248,
    },
}


def module_shapes(build: Callable[[], torch.nn.Module]) -> Shapes:
    """Return the shapes of a module's state, without making its numbers."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def planned_shapes(kind: type[NetworkConfig], content: Mapping[str, Any]) -> Shapes:
    specs = folder_specs(read_network_config(kind, content, "config.json"))
    return unique((spec.name, spec.shape) for spec in specs)


def unique(pairs: Iterable[tuple[str, tuple[int, ...]]]) -> Shapes:
    listed = list(pairs)
    assert len(dict(listed)) == len(listed)
    return dict(listed)


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_has_the_tensors_of_diffusers(name: str) -> None:
    expected = module_shapes(lambda: UNet2DConditionModel(**UNETS[name]))
    assert planned_shapes(UNetConfig, UNETS[name]) == expected


@pytest.mark.parametrize("name", VAES)
def test_a_vae_has_the_tensors_of_diffusers(name: str) -> None:
    expected = module_shapes(lambda: AutoencoderKL(**VAES[name]))
    assert planned_shapes(VaeConfig, VAES[name]) == expected


@pytest.mark.parametrize("name", CLIPS)
def test_a_text_encoder_has_the_tensors_of_transformers(name: str) -> None:
    config = CLIPTextConfig(**CLIPS[name])
    expected = module_shapes(lambda: CLIPTextModel(config))
    assert planned_shapes(TextEncoderConfig, CLIPS[name]) == expected
    expected = module_shapes(lambda: CLIPTextModelWithProjection(config))
    assert planned_shapes(ProjectedTextEncoderConfig, CLIPS[name]) == expected


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"projection_dim": 768, "vision_config": {"hidden_size": 96, "num_hidden_layers": 3}},
        {"vision_config": {"hidden_size": 96, "image_size": 64, "patch_size": 14}},
        {"vision_config": {"hidden_size": 96}, "vision_config_dict": {"intermediate_size": 40}},
    ],
    ids=str,
)
def test_a_safety_checker_has_the_tensors_of_diffusers(content: dict[str, Any]) -> None:
    expected = module_shapes(lambda: StableDiffusionSafetyChecker(CLIPConfig(**content)))
    config = read_network_config(SafetyCheckerConfig, content, "config.json")
    assert unique(safety_checker_tensors(config)) == expected
