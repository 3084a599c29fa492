"""Weights in prompts, against slow arithmetic, and against what pictures show."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.networks.text_encoders import ClipTextEncoders, apply_emphasis
from serve_app.runtime.networks.vae import RgbImage
from tests.support.demo_models import Engines
from tests.support.engine_runs import run_images
from tests.support.reference_diffusers import Stock
from tests.support.text_encodings import SPEC, Encoding, encode, some_words, stock_encoding

pytestmark = pytest.mark.usefixtures("inference")
both_stages = pytest.mark.parametrize("stage", list(Stage))


def slow_encoding(
    stock: Stock, stage: Stage, chunks: Sequence[Sequence[tuple[str, float]]]
) -> Encoding:
    """Encode chunks of weighted texts as AUTOMATIC1111 does, one row at a time."""
    pipeline = stock.base if stage is Stage.BASE else stock.refiner
    pairs = [(pipeline.tokenizer_2, pipeline.text_encoder_2)]
    if stage is Stage.BASE:
        pairs.insert(0, (pipeline.tokenizer, pipeline.text_encoder))
    columns = []
    for tokenizer, encoder in pairs:
        rows = []
        for chunk in chunks:
            ids, weights = [tokenizer.bos_token_id], [1.0]
            for text, weight in chunk:
                text_ids = tokenizer(text, add_special_tokens=False).input_ids
                ids += text_ids
                weights += [weight] * len(text_ids)
            ids += [tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (77 - len(ids))
            weights += [1.0] * (77 - len(weights))
            hidden = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]
            mean = hidden.double().sum() / hidden.numel()
            hidden = torch.stack([row * w for row, w in zip(hidden.double(), weights, strict=True)])
            rows.append(hidden * mean / (hidden.sum() / hidden.numel()))
        columns.append(torch.cat(rows))
    first_text = " ".join(text for text, _ in chunks[0])
    return torch.cat(columns, dim=1).float(), stock_encoding(stock, stage, first_text)[1]


@both_stages
@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a (red:1.6) circle", [[("a", 1), ("red", 1.6), ("circle", 1)]]),
        ("a (red:0.2) circle", [[("a", 1), ("red", 0.2), ("circle", 1)]]),
        ("((a)) [red (circle)]", [[("a", 1.21), ("red", 1 / 1.1), ("circle", 1)]]),
        ("(a:0) red", [[("a", 0), ("red", 1)]]),
        ("(a:-3) red (circle:7)", [[("a", 0), ("red", 1), ("circle", 2)]]),
        (
            r"(a red BREAK blue:1.3) \(star\)",
            [[("a red", 1.3)], [("blue", 1.3), ("(star)", 1)]],
        ),
        (
            f"(red:1.5) {some_words(80)} (star:0.5)",
            [
                [("red", 1.5), (some_words(74), 1)],
                [(" ".join(some_words(80).split()[74:]), 1), ("star", 0.5)],
            ],
        ),
    ],
    ids=["more", "less", "nested", "zero", "clamped", "over a break", "two chunks"],
)
def test_weights_multiply_tokens_and_keep_the_mean_of_each_chunk(
    text_encoders: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
    prompt: str,
    chunks: list[list[tuple[str, float]]],
) -> None:
    ours, theirs = encode(text_encoders[stage], prompt), slow_encoding(stock, stage, chunks)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)
    assert torch.equal(ours[1], theirs[1])


def test_emphasis_keeps_dtype_and_mean() -> None:
    hidden = torch.randn(77, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    for dtype in (torch.float32, torch.bfloat16):
        emphasized = apply_emphasis(hidden.to(dtype), [2.0, 0.0])
        assert emphasized.dtype == dtype
        assert emphasized.float().mean().item() == pytest.approx(hidden.mean().item(), abs=2e-3)
        assert not emphasized[2].any()


def test_a_weight_of_one_gives_the_same_bytes(engines: Engines) -> None:
    marked = [
        "a (red:1.0) circle on a white background",
        "(a red circle:1) on a [(white)] background",
    ]
    specs = [SPEC, *(replace(SPEC, prompt=prompt) for prompt in marked)]
    plain, *others = run_images(engines(), [(spec, None) for spec in specs])
    assert all(np.array_equal(plain, other) for other in others)


def redness(image: RgbImage) -> float:
    """Return by how much red exceeds green and blue, on average over an image."""
    red, green, blue = image.astype(float).mean(axis=(0, 1))
    return float(red - (green + blue) / 2)


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_a_heavier_word_shows_more_and_a_light_prompt_shows_less(
    engines: Engines, seed: int
) -> None:
    prompts = [
        "(a red circle on a white background:0.2)",
        "a red circle on a white background",
        "a (red circle:1.6) on a white background",
    ]
    specs = [replace(SPEC, prompt=prompt, seed=seed, steps=8) for prompt in prompts]
    faint, plain, strong = map(redness, run_images(engines(), [(spec, None) for spec in specs]))
    assert faint < plain - 5
    assert strong > plain + 5


def test_a_clamped_weight_gives_a_warning(text_encoders: dict[Stage, ClipTextEncoders]) -> None:
    tokenized = text_encoders[Stage.BASE].tokenize("a (red:2.5) [circle]", "prompt")
    assert tokenized.warnings == ("weights in the prompt were kept between 0 and 2",)
