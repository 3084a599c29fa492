"""Text embeddings, against those of stock diffusers and against slow arithmetic."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.prompt import MAX_CHUNKS
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.text_encoders import ClipTextEncoders
from tests.support.demo_models import Engines
from tests.support.engine_runs import run_images
from tests.support.reference_diffusers import Stock
from tests.support.text_encodings import (
    SPEC,
    encode,
    same,
    some_words,
    stock_chunks,
    stock_encoding,
)

MAX_DIFFERENCE = 2  # of 255
pytestmark = pytest.mark.usefixtures("inference")
both_stages = pytest.mark.parametrize("stage", list(Stage))


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
