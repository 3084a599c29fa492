"""Prompts encoded by our text encoders and by stock diffusers."""

from collections.abc import Sequence

import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.networks.text_encoders import ClipTextEncoders
from tests.support.reference_diffusers import Stock

WORDS = ("red", "blue", "green", "circle", "square", "star")  # one token each
Encoding = tuple[torch.Tensor, torch.Tensor]
SPEC = ImageSpec(
    prompt="a red circle on a white background",
    seed=1,
    width=128,
    height=128,
    steps=6,
    guidance=5,
)


def encode(text_encoders: ClipTextEncoders, prompt: str) -> Encoding:
    tokenized = text_encoders.tokenize(prompt, "prompt")
    return text_encoders.encode(tokenized, len(tokenized.chunks))


def stock_encoding(stock: Stock, stage: Stage, text: str) -> Encoding:
    """Encode one text by the stock pipeline of a stage: (77, width) and (projection_dim,)."""
    pipeline = stock.base if stage is Stage.BASE else stock.refiner
    embeds, _, pooled, _ = pipeline.encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return embeds[0], pooled[0]


def stock_chunks(stock: Stock, stage: Stage, texts: Sequence[str]) -> Encoding:
    """Encode every text by stock alone: all embeddings in order, and the first text's pooled."""
    encoded = [stock_encoding(stock, stage, text) for text in texts]
    return torch.cat([embeds for embeds, _ in encoded]), encoded[0][1]


def same(ours: Encoding, theirs: Encoding) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def some_words(count: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))
