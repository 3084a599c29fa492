"""Text embeddings, against those of stock diffusers and against slow arithmetic."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.prompt import MAX_CHUNKS
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.text_encoders import ClipTextEncoders, apply_emphasis
from serve_app.runtime.networks.vae import RgbImage
from tests.support.demo_models import Engines
from tests.support.engine_runs import run_images
from tests.support.reference_diffusers import Stock

MAX_DIFFERENCE = 2  # of 255
WORDS = ("red", "blue", "green", "circle", "square", "star")  # one token each
SPEC = ImageSpec(
    prompt="a red circle on a white background",
    seed=1,
    width=128,
    height=128,
    steps=6,
    guidance=5,
)
Encoding = tuple[torch.Tensor, torch.Tensor]
both_stages = pytest.mark.parametrize("stage", list(Stage))


@pytest.fixture(scope="module")
def text_encoders(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> dict[Stage, ClipTextEncoders]:
    return {stage: load(checkpoint, cpu).text_encoders for stage, checkpoint in checkpoints.items()}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


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


@both_stages
@pytest.mark.parametrize(
    "prompt",
    [
        "a red fox in the snow",
        "",
        "  Café, 狐 🦊 -- it's :) a] \\back: 1.3)",
        "breaking <|endoftext|> news",
        some_words(75),
    ],
)
def test_a_prompt_of_one_chunk_without_weights_equals_stock_to_the_bit(
    text_encoders: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage, prompt: str
) -> None:
    assert same(encode(text_encoders[stage], prompt), stock_encoding(stock, stage, prompt))


def test_each_tokenizer_pads_with_its_own_token(stock: Stock) -> None:
    """SDXL's second tokenizer does not pad with its end token, unlike those of the demo."""
    other = deepcopy(stock.base.tokenizer_2)
    other.pad_token = "!"
    parts = stock.base.components | {"tokenizer_2": other}
    theirs = replace(stock, base=type(stock.base)(**parts, add_watermarker=False))
    pairs = [
        (stock.base.tokenizer, stock.base.text_encoder),
        (other, stock.base.text_encoder_2),
    ]
    ours = encode(ClipTextEncoders(pairs, torch.device("cpu")), SPEC.prompt)
    assert same(ours, stock_encoding(theirs, Stage.BASE, SPEC.prompt))
    assert not same(ours, stock_encoding(stock, Stage.BASE, SPEC.prompt))


@both_stages
def test_a_long_prompt_equals_stock_for_each_chunk(
    text_encoders: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    words = some_words(170).split()
    chunks = [" ".join(words[at : at + 75]) for at in (0, 75, 150)]
    ours = encode(text_encoders[stage], " ".join(words))
    assert ours[0].shape[0] == 3 * 77
    assert same(ours, stock_chunks(stock, stage, chunks))


@both_stages
def test_a_phrase_is_not_split_between_chunks(
    text_encoders: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    first, last = f"{some_words(69)},", "a large green star on the left"
    assert same(
        encode(text_encoders[stage], f"{first} {last}"), stock_chunks(stock, stage, [first, last])
    )


@both_stages
def test_break_begins_a_chunk(
    text_encoders: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    ours = encode(text_encoders[stage], "a red star BREAK BREAK\na blue background")
    assert same(ours, stock_chunks(stock, stage, ["a red star", "", "a blue background"]))


@both_stages
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a BREAK b BREAK c", "dull"), ("a", "dull BREAK grey BREAK faint"), ("a", "dull"), ("a", "")],
)
def test_the_shorter_prompt_is_padded_with_empty_chunks(
    checkpoints: dict[Stage, Checkpoint],
    text_encoders: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
    prompt: str,
    negative: str,
) -> None:
    conditioner = Conditioner(text_encoders[stage], checkpoints[stage])
    scheduled = conditioner.condition(replace(SPEC, prompt=prompt, negative_prompt=negative))
    conditioning = scheduled.at(0)
    positive_texts, negative_texts = (
        [*texts, *[""] * (scheduled.chunks - len(texts))]
        for texts in (prompt.split("BREAK"), negative.split("BREAK"))
    )
    assert conditioning.negative is not None
    for row, texts in (
        (conditioning.positive, positive_texts),
        (conditioning.negative, negative_texts),
    ):
        assert same((row.embeds, row.pooled), stock_chunks(stock, stage, texts))
    assert scheduled.chunks == max(prompt.count("BREAK"), negative.count("BREAK")) + 1


@both_stages
def test_an_absent_negative_prompt_is_as_long_as_the_prompt(
    checkpoints: dict[Stage, Checkpoint],
    text_encoders: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
) -> None:
    conditioner = Conditioner(text_encoders[stage], checkpoints[stage])
    row = conditioner.condition(replace(SPEC, prompt="a BREAK b")).at(0).negative
    assert row is not None
    embeds, pooled = stock_chunks(stock, stage, ["", ""])
    if checkpoints[stage].force_zeros_for_empty_prompt:
        embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    assert same((row.embeds, row.pooled), (embeds, pooled))


def test_an_image_of_three_chunks_equals_stock_with_those_embeddings(
    engines: Engines, stock: Stock
) -> None:
    spec = replace(SPEC, prompt=f"a red star, {some_words(150)}", negative_prompt="dull")
    words = spec.prompt.replace(",", " ,").split()
    texts = [" ".join(words[at : at + 75]) for at in (0, 75, 150)]
    embeds, pooled = stock_chunks(stock, Stage.BASE, texts)
    negative, negative_pooled = stock_chunks(stock, Stage.BASE, ["dull", "", ""])
    stock.base.scheduler = stock.scheduler(spec.sampler)
    theirs = stock.base(
        prompt_embeds=embeds[None],
        pooled_prompt_embeds=pooled[None],
        negative_prompt_embeds=negative[None],
        negative_pooled_prompt_embeds=negative_pooled[None],
        width=128,
        height=128,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
    ).images[0]
    (ours,) = run_images(engines(), [(spec, None)])
    assert np.abs(ours.astype(np.int16) - np.asarray(theirs)).max() <= MAX_DIFFERENCE


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


def test_a_prompt_that_is_not_cut_gives_no_warning(
    text_encoders: dict[Stage, ClipTextEncoders],
) -> None:
    longest = " BREAK ".join(["a red star"] * MAX_CHUNKS)
    for prompt in ("a fox", "", "(a:0) [b] (c:2)", some_words(500), longest, f"{longest} BREAK "):
        assert text_encoders[Stage.BASE].tokenize(prompt, "prompt").warnings == ()


@both_stages
def test_a_cut_prompt_is_quoted_in_a_warning(
    text_encoders: dict[Stage, ClipTextEncoders], stage: Stage
) -> None:
    longest = " BREAK ".join(["a red star"] * MAX_CHUNKS)
    tokenized = text_encoders[stage].tokenize(
        f"{longest} BREAK a (blue:1.3) Circle BREAK star", "prompt"
    )
    assert len(tokenized.chunks) == MAX_CHUNKS
    assert tokenized.warnings == (
        "the prompt was cut after 32 chunks of 75 tokens: "
        '4 tokens were left out, "a blue circle star"',
    )


def test_a_long_cut_is_quoted_in_part(text_encoders: dict[Stage, ClipTextEncoders]) -> None:
    tokenized = text_encoders[Stage.BASE].tokenize(
        some_words(75 * MAX_CHUNKS + 99), "negative prompt"
    )
    (warning,) = tokenized.warnings
    assert warning.startswith("the negative prompt was cut after 32 chunks of 75 tokens: 99 tokens")
    assert warning.endswith('…"')
    assert len(warning) < 320


def test_a_clamped_weight_gives_a_warning(text_encoders: dict[Stage, ClipTextEncoders]) -> None:
    tokenized = text_encoders[Stage.BASE].tokenize("a (red:2.5) [circle]", "prompt")
    assert tokenized.warnings == ("weights in the prompt were kept between 0 and 2",)


class CountingEncoder:
    """A text encoder that counts its calls."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.dtype = encoder.dtype
        self.calls = 0

    def __call__(self, ids: torch.Tensor, *, output_hidden_states: bool) -> Any:
        self.calls += 1
        return self.encoder(ids, output_hidden_states=output_hidden_states)


def test_a_chunk_is_encoded_once_and_evicted_after_many_others(stock: Stock) -> None:
    encoder = CountingEncoder(stock.refiner.text_encoder_2)
    text_encoders = ClipTextEncoders([(stock.refiner.tokenizer_2, encoder)], torch.device("cpu"))
    first = encode(text_encoders, "a star BREAK a circle BREAK a star")
    assert encoder.calls == 2
    encode(text_encoders, "a circle")
    assert encoder.calls == 2
    for number in range(128):
        encode(text_encoders, f"a star {number}")
    assert encoder.calls == 130
    assert same(encode(text_encoders, "a star BREAK a circle BREAK a star"), first)
    assert encoder.calls == 132
