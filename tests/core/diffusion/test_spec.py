from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import InvalidRequest
from tests.support.keys import lora

PLAIN = ImageSpec(prompt="a fox", seed=0, width=1024, height=768, steps=30, guidance=6.9)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("prompt", "", "prompt must not be empty"),
        ("seed", -1, "seed must be between 0 and 4.29497e+09, got -1"),
        ("seed", 2**32, "seed must be between 0 and 4.29497e+09, got 4294967296"),
        ("steps", 0, "steps must be between 1 and 150, got 0"),
        ("steps", 151, "steps must be between 1 and 150, got 151"),
        ("guidance", 20.5, "guidance must be between 0 and 20, got 20.5"),
        ("guidance", float("nan"), "guidance must be between 0 and 20, got nan"),
        ("handoff", 1.1, "handoff must be between 0 and 1, got 1.1"),
        ("strength", 0.0, "strength must be above 0, got 0"),
        ("strength", 1.5, "strength must be between 0 and 1, got 1.5"),
        ("width", 1020, "width must be a multiple of 8, got 1020"),
        ("height", 0, "height must be a multiple of 8, got 0"),
        ("guidance_interval", (3.0, 3.0), "guidance_interval must ascend, got 3 to 3"),
        (
            "guidance_interval",
            (-0.1, 3.0),
            "guidance_interval must be between 0 and 10000, got -0.1",
        ),
    ],
)
def test_an_illegal_value_cannot_be_built(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        replace(PLAIN, **{field: value})
    assert str(refused.value) == sentence


def test_the_edges_of_every_range_are_legal() -> None:
    high = replace(PLAIN, seed=2**32 - 1, steps=150, guidance=20, handoff=0, strength=1)
    low = replace(PLAIN, seed=0, steps=1, guidance=0, handoff=1, strength=0.001)
    assert (high.nfe, high.rows) == (150, 2)
    assert (low.nfe, low.rows) == (1, 1)


@pytest.mark.parametrize(("guidance", "rows"), [(0, 1), (1, 1), (1.01, 2), (9, 2)])
def test_guidance_above_one_takes_two_rows(guidance: float, rows: int) -> None:
    assert replace(PLAIN, guidance=guidance).rows == rows


def test_an_lcm_runs_no_more_steps_than_it_was_distilled_at() -> None:
    assert replace(PLAIN, sampler=Sampler.LCM, steps=50).nfe == 50
    with pytest.raises(InvalidRequest, match="steps must be between 1 and 50, got 51"):
        replace(PLAIN, sampler=Sampler.LCM, steps=51)


@pytest.mark.parametrize(
    ("fields", "nfe"),
    [({}, 30), ({"sampler": Sampler.HEUN}, 60), ({"strength": 0.5}, 15), ({"strength": 0.01}, 1)],
)
def test_a_spec_knows_its_network_evaluations(fields: dict[str, Any], nfe: int) -> None:
    assert replace(PLAIN, **fields).nfe == nfe


def test_latents_are_an_eighth_of_the_picture() -> None:
    assert PLAIN.latent_shape == (96, 128)


@pytest.mark.parametrize("weight", [-2.1, 2.01, float("nan")])
def test_a_lora_weight_is_between_minus_two_and_two(weight: float) -> None:
    assert len(replace(PLAIN, extensions=(lora("x", -2), lora("y", 2))).extensions) == 2
    with pytest.raises(InvalidRequest, match=f"extensions must be between -2 and 2, got {weight}"):
        replace(PLAIN, extensions=(lora("x", weight),))


def test_a_lora_is_named_once() -> None:
    with pytest.raises(InvalidRequest, match="extensions names the LoRA x more than once"):
        replace(PLAIN, extensions=(lora("x"), lora("y"), lora("x", 0.5)))


def test_a_spec_knows_its_prompts_at_the_steps_that_run() -> None:
    spec = replace(PLAIN, prompt="a [fox:cat:2]", negative_prompt="[blur|grain]", steps=6)
    assert spec.prompts_by_step == ("a fox",) * 2 + ("a cat",) * 4
    assert spec.negative_prompts_by_step == ("blur", "grain") * 3
    assert spec.prompt_texts == ("a [fox:cat:2]", "a fox", "a cat")
    short = replace(spec, strength=0.4)
    assert short.prompts_by_step == ("a fox", "a fox")
    assert short.prompt_texts == ("a [fox:cat:2]", "a fox")
    assert replace(spec, negative_prompt=None).negative_prompts_by_step == ("",) * 6


def test_prompts_of_steps_that_run_are_encoded() -> None:
    spec = replace(PLAIN, prompt="a [fox:cat:2]", negative_prompt="[a|b|c]", steps=6, guidance=5)
    assert spec.encoded_prompts == 5
    assert replace(spec, guidance=1).encoded_prompts == 2
    assert replace(spec, strength=0.34).encoded_prompts == 1 + 2
    assert replace(spec, strength=0.34, negative_prompt=None).encoded_prompts == 2


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_has_a_limited_number_of_texts(field: str) -> None:
    fields: dict[str, Any] = {field: "[" + "|".join("abcdefghijklmnopq") + "]"}
    with pytest.raises(InvalidRequest, match=f"{field} changes into more than 16") as refused:
        replace(PLAIN, **fields)
    assert refused.value.path == field
