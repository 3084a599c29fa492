"""How the stand-in is made: SDXL's real architecture at toy size, with random weights.

Knows no engine: it writes two ordinary diffusers folders, which are loaded like any other.
Built with a fixed seed, so that the same machine always gets the same weights.
"""

import shutil
from pathlib import Path

import torch
from torch import nn

from serve_app.runtime.libraries import diffusers, transformers
from serve_app.runtime.standin import BASE, REFINER, SEED

NATIVE_LATENT = 16  # 128 pixels a side
_PROJECTION, _TIME_DIM = 64, 32
_LOUD, _HEED = 3.0, 3.0


def build_standin(home: Path) -> None:
    """Writes `standin-base` and `standin-refiner` under `home` as diffusers folders."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(SEED)
        words = _tokenizer(home / "words")
        vae = _vae()
        encoder_2 = transformers.CLIPTextModelWithProjection(_text_config(96, 3, "gelu")).eval()
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        diffusers.StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=transformers.CLIPTextModel(_text_config(64, 2, "quick_gelu")).eval(),
            text_encoder_2=encoder_2,
            tokenizer=words,
            tokenizer_2=words,
            unet=_unet(
                channels=(48, 96, 96),
                attends=(False, True, True),
                heads=(1, 3, 3),
                depths=(1, 1, 2),
                context=160,
                ids=6,
            ),
            scheduler=scheduler,
            add_watermarker=False,
        ).save_pretrained(home / BASE)
        diffusers.StableDiffusionXLImg2ImgPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=encoder_2,
            tokenizer=None,
            tokenizer_2=words,
            unet=_unet(
                channels=(32, 64, 64, 64),
                attends=(False, True, True, False),
                heads=(1, 2, 2, 2),
                depths=(1, 1, 1, 1),
                context=96,
                ids=5,
            ),
            scheduler=scheduler,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ).save_pretrained(home / REFINER)
        shutil.rmtree(home / "words")


def _tokenizer(folder: Path) -> "transformers.CLIPTokenizer":
    """CLIP's byte-level tokenizer without merges: a token for every letter."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    words = transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        model_max_length=77,
        pad_token="<|endoftext|>",
    )
    words.save_pretrained(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _text_config(hidden: int, heads: int, activation: str) -> "transformers.CLIPTextConfig":
    return transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=3,
        num_attention_heads=heads,
        projection_dim=_PROJECTION,
        hidden_act=activation,
        bos_token_id=512,
        eos_token_id=513,  # the highest id: CLIP pools where it stands
        pad_token_id=513,
    )


def _unet(
    *,
    channels: tuple[int, ...],
    attends: tuple[bool, ...],
    heads: tuple[int, ...],
    depths: tuple[int, ...],
    context: int,
    ids: int,
) -> "diffusers.UNet2DConditionModel":
    unet = diffusers.UNet2DConditionModel(
        sample_size=NATIVE_LATENT,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=[("CrossAttn" if a else "") + "DownBlock2D" for a in attends],
        up_block_types=[("CrossAttn" if a else "") + "UpBlock2D" for a in reversed(attends)],
        transformer_layers_per_block=depths,
        attention_head_dim=heads,
        cross_attention_dim=context,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_DIM,
        projection_class_embeddings_input_dim=ids * _TIME_DIM + _PROJECTION,
        norm_num_groups=8,
    ).eval()
    unet.conv_out.weight *= _LOUD  # a trained one predicts noise of about unit variance
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and ("attn2.to_out" in name or "embedding" in name):
            module.weight *= _HEED  # prompt, sizes and time must show in the picture
    return unet


def _vae() -> "diffusers.AutoencoderKL":
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=NATIVE_LATENT * 8,
        scaling_factor=0.13025,
        force_upcast=False,
    ).eval()
