"""What the networks are told of a prompt, against stock's encoding and against slow arithmetic."""

from collections.abc import Sequence
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
from tests.runtime.conftest import Engines
from tests.support.engine_runs import walk
from tests.support.reference_diffusers import Stock

LEVELS = 2  # of 255
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
both = pytest.mark.parametrize("stage", list(Stage))


@pytest.fixture(scope="module")
def prompts(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> dict[Stage, Any]:
    return {stage: load(checkpoint, cpu).text_encoders for stage, checkpoint in checkpoints.items()}


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.inference_mode():
        yield


def told(prompts: ClipTextEncoders, prompt: str) -> Encoding:
    reading = prompts.tokenize(prompt, "prompt")
    return prompts.encode(reading, len(reading.chunks))


def stocks(stock: Stock, stage: Stage, text: str) -> Encoding:
    """One text as the stock pipeline of a stage encodes it: (77, width) and (projection,)."""
    pipeline = stock.base if stage is Stage.BASE else stock.refiner
    embeds, _, pooled, _ = pipeline.encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return embeds[0], pooled[0]


def side_by_side(stock: Stock, stage: Stage, texts: Sequence[str]) -> Encoding:
    """Every text encoded by stock alone; their rows in order, and the first one's pooled."""
    encoded = [stocks(stock, stage, text) for text in texts]
    return torch.cat([embeds for embeds, _ in encoded]), encoded[0][1]


def same(ours: Encoding, theirs: Encoding) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def some_words(count: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))


@both
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
def test_a_prompt_of_one_chunk_without_weights_is_stocks_to_the_bit(
    prompts: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage, prompt: str
) -> None:
    assert same(told(prompts[stage], prompt), stocks(stock, stage, prompt))


def test_the_padding_is_each_tokenizers_own(stock: Stock) -> None:
    """SDXL's second tokenizer fills up with another token than it ends with; the demo's don't."""
    other = deepcopy(stock.base.tokenizer_2)
    other.pad_token = "!"
    parts = stock.base.components | {"tokenizer_2": other}
    theirs = replace(stock, base=type(stock.base)(**parts, add_watermarker=False))
    pairs = [
        (stock.base.tokenizer, stock.base.text_encoder),
        (other, stock.base.text_encoder_2),
    ]
    ours = told(ClipTextEncoders(pairs, torch.device("cpu")), SPEC.prompt)
    assert same(ours, stocks(theirs, Stage.BASE, SPEC.prompt))
    assert not same(ours, stocks(stock, Stage.BASE, SPEC.prompt))


@both
def test_a_long_prompt_is_stocks_encoding_of_each_chunk(
    prompts: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    words = some_words(170).split()
    chunks = [" ".join(words[at : at + 75]) for at in (0, 75, 150)]
    ours = told(prompts[stage], " ".join(words))
    assert ours[0].shape[0] == 3 * 77
    assert same(ours, side_by_side(stock, stage, chunks))


@both
def test_a_phrase_goes_whole_into_the_next_chunk(
    prompts: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    first, last = f"{some_words(69)},", "a large green star on the left"
    assert same(told(prompts[stage], f"{first} {last}"), side_by_side(stock, stage, [first, last]))


@both
def test_break_begins_a_chunk(
    prompts: dict[Stage, ClipTextEncoders], stock: Stock, stage: Stage
) -> None:
    ours = told(prompts[stage], "a red star BREAK BREAK\na blue background")
    assert same(ours, side_by_side(stock, stage, ["a red star", "", "a blue background"]))


@both
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a BREAK b BREAK c", "dull"), ("a", "dull BREAK grey BREAK faint"), ("a", "dull"), ("a", "")],
)
def test_the_shorter_prompt_is_filled_with_empty_chunks(
    checkpoints: dict[Stage, Checkpoint],
    prompts: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
    prompt: str,
    negative: str,
) -> None:
    conditioner = Conditioner(prompts[stage], checkpoints[stage])
    guide = conditioner.condition(replace(SPEC, prompt=prompt, negative_prompt=negative))
    texts, against = prompt.split("BREAK"), negative.split("BREAK")
    texts, against = ([*side, *[""] * (guide.chunks - len(side))] for side in (texts, against))
    assert guide.negative is not None
    for condition, side in ((guide.positive, texts), (guide.negative, against)):
        assert same((condition.embeds, condition.pooled), side_by_side(stock, stage, side))
    assert guide.chunks == max(prompt.count("BREAK"), negative.count("BREAK")) + 1


@both
def test_an_absent_negative_prompt_is_as_long_as_the_prompt(
    checkpoints: dict[Stage, Checkpoint],
    prompts: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
) -> None:
    conditioner = Conditioner(prompts[stage], checkpoints[stage])
    away = conditioner.condition(replace(SPEC, prompt="a BREAK b")).negative
    assert away is not None
    embeds, pooled = side_by_side(stock, stage, ["", ""])
    if checkpoints[stage].force_zeros_for_empty_prompt:
        embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    assert same((away.embeds, away.pooled), (embeds, pooled))


def test_the_picture_of_three_chunks_is_stocks_for_those_embeddings(
    engines: Engines, stock: Stock
) -> None:
    spec = replace(SPEC, prompt=f"a red star, {some_words(150)}", negative_prompt="dull")
    words = spec.prompt.replace(",", " ,").split()
    texts = [" ".join(words[at : at + 75]) for at in (0, 75, 150)]
    embeds, pooled = side_by_side(stock, Stage.BASE, texts)
    against, against_pooled = side_by_side(stock, Stage.BASE, ["dull", "", ""])
    stock.base.scheduler = stock.scheduler(spec.sampler)
    theirs = stock.base(
        prompt_embeds=embeds[None],
        pooled_prompt_embeds=pooled[None],
        negative_prompt_embeds=against[None],
        negative_pooled_prompt_embeds=against_pooled[None],
        width=128,
        height=128,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
    ).images[0]
    (ours,) = walk(engines(), [(spec, None)])
    assert np.abs(ours.astype(np.int16) - np.asarray(theirs)).max() <= LEVELS


def slowly(stock: Stock, stage: Stage, chunks: Sequence[Sequence[tuple[str, float]]]) -> Encoding:
    """Chunks of texts with weights, as AUTOMATIC1111 has them, one number at a time."""
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
                inside = tokenizer(text, add_special_tokens=False).input_ids
                ids += inside
                weights += [weight] * len(inside)
            ids += [tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (77 - len(ids))
            weights += [1.0] * (77 - len(weights))
            hidden = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]
            before = hidden.double().sum() / hidden.numel()
            hidden = torch.stack([row * w for row, w in zip(hidden.double(), weights, strict=True)])
            rows.append(hidden * before / (hidden.sum() / hidden.numel()))
        columns.append(torch.cat(rows))
    whole = " ".join(text for text, _ in chunks[0])
    return torch.cat(columns, dim=1).float(), stocks(stock, stage, whole)[1]


@both
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
    ids=["more", "less", "nested", "nothing", "held", "over a break", "two chunks"],
)
def test_weights_multiply_tokens_and_leave_each_chunks_mean(
    prompts: dict[Stage, ClipTextEncoders],
    stock: Stock,
    stage: Stage,
    prompt: str,
    chunks: list[list[tuple[str, float]]],
) -> None:
    ours, theirs = told(prompts[stage], prompt), slowly(stock, stage, chunks)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)
    assert torch.equal(ours[1], theirs[1])


def test_the_weighing_keeps_the_dtype_and_the_mean() -> None:
    hidden = torch.randn(77, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    for dtype in (torch.float32, torch.bfloat16):
        moved = apply_emphasis(hidden.to(dtype), [2.0, 0.0])
        assert moved.dtype == dtype
        assert moved.float().mean().item() == pytest.approx(hidden.mean().item(), abs=2e-3)
        assert not moved[2].any()


def test_a_weight_of_one_gives_the_same_bytes(engines: Engines) -> None:
    marked = [
        "a (red:1.0) circle on a white background",
        "(a red circle:1) on a [(white)] background",
    ]
    specs = [SPEC, *(replace(SPEC, prompt=prompt) for prompt in marked)]
    plain, *others = walk(engines(), [(spec, None) for spec in specs])
    assert all(np.array_equal(plain, other) for other in others)


def redness(picture: RgbImage) -> float:
    """How far red stands above the other two, on average over a picture."""
    shades = picture.astype(float).mean(axis=(0, 1))
    return float(shades[0] - (shades[1] + shades[2]) / 2)


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_what_weighs_more_shows_more_and_what_weighs_little_hardly(
    engines: Engines, seed: int
) -> None:
    asked = [
        "(a red circle on a white background:0.2)",
        "a red circle on a white background",
        "a (red circle:1.6) on a white background",
    ]
    specs = [replace(SPEC, prompt=prompt, seed=seed, steps=8) for prompt in asked]
    faint, plain, strong = map(redness, walk(engines(), [(spec, None) for spec in specs]))
    assert faint < plain - 5
    assert strong > plain + 5


def test_nothing_is_warned_of_when_nothing_was_cut(prompts: dict[Stage, ClipTextEncoders]) -> None:
    most = " BREAK ".join(["a red star"] * MAX_CHUNKS)
    for prompt in ("a fox", "", "(a:0) [b] (c:2)", some_words(500), most, f"{most} BREAK "):
        assert prompts[Stage.BASE].tokenize(prompt, "prompt").warnings == ()


@both
def test_what_is_cut_is_told(prompts: dict[Stage, ClipTextEncoders], stage: Stage) -> None:
    most = " BREAK ".join(["a red star"] * MAX_CHUNKS)
    reading = prompts[stage].tokenize(f"{most} BREAK a (blue:1.3) Circle BREAK star", "prompt")
    assert len(reading.chunks) == MAX_CHUNKS
    assert reading.warnings == (
        "the prompt was cut after 32 chunks of 75 tokens: "
        '4 tokens were left out, "a blue circle star"',
    )


def test_what_is_cut_is_told_in_few_words(prompts: dict[Stage, ClipTextEncoders]) -> None:
    reading = prompts[Stage.BASE].tokenize(some_words(75 * MAX_CHUNKS + 99), "negative prompt")
    (warning,) = reading.warnings
    assert warning.startswith("the negative prompt was cut after 32 chunks of 75 tokens: 99 tokens")
    assert warning.endswith('…"')
    assert len(warning) < 320


def test_a_weight_that_was_held_is_told(prompts: dict[Stage, ClipTextEncoders]) -> None:
    reading = prompts[Stage.BASE].tokenize("a (red:2.5) [circle]", "prompt")
    assert reading.warnings == ("weights in the prompt were kept between 0 and 2",)


class Counting:
    """A text encoder that counts its calls."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.dtype = encoder.dtype
        self.calls = 0

    def __call__(self, ids: torch.Tensor, *, output_hidden_states: bool) -> Any:
        self.calls += 1
        return self.encoder(ids, output_hidden_states=output_hidden_states)


def test_a_chunk_is_encoded_once_and_forgotten_after_many_others(stock: Stock) -> None:
    encoder = Counting(stock.refiner.text_encoder_2)
    prompts = ClipTextEncoders([(stock.refiner.tokenizer_2, encoder)], torch.device("cpu"))
    first = told(prompts, "a star BREAK a circle BREAK a star")
    assert encoder.calls == 2
    told(prompts, "a circle")
    assert encoder.calls == 2
    for number in range(128):
        told(prompts, f"a star {number}")
    assert encoder.calls == 130
    assert same(told(prompts, "a star BREAK a circle BREAK a star"), first)
    assert encoder.calls == 132
