"""The device of conditioning, with text encoders on a pretended one."""

from dataclasses import fields, replace

import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.prompt import MAX_CHUNKS
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from tests.support.analytic_model import CHECKPOINT, BlankTextEncoders

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)


class RecordingTextEncoders(BlankTextEncoders):
    """Text encoders that remember what they encoded, and into how many chunks."""

    def __init__(self) -> None:
        self.max_chunks: list[int] = []
        self.encoded: list[tuple[str, int]] = []

    def tokenize(self, prompt: str, name: str, max_chunks: int = MAX_CHUNKS) -> TokenizedPrompt:
        self.max_chunks.append(max_chunks)
        return TokenizedPrompt(super().tokenize(prompt, name).chunks, (prompt,))

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (text,) = prompt.warnings
        self.encoded.append((text, chunks))
        return super().encode(prompt, chunks)


class OnDevice(torch.Tensor):
    """A tensor on a pretended device, which `cpu` copies to the host."""

    def cpu(self, *_: object, **__: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class TextEncodersOnDevice(BlankTextEncoders):
    """Text encoders whose results are on the pretended device."""

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = super().encode(prompt, chunks)
        return embeds.as_subclass(OnDevice), pooled.as_subclass(OnDevice)


@pytest.mark.parametrize("negative", [None, "blur"])
def test_conditioning_leaves_nothing_on_the_device(negative: str | None) -> None:
    conditioner = Conditioner(TextEncodersOnDevice(), CHECKPOINT)
    conditioning = conditioner.condition(replace(SPEC, negative_prompt=negative)).at(0)
    assert conditioning.negative is not None
    rows = conditioning.positive, conditioning.negative
    tensors = [getattr(row, field.name) for row in rows for field in fields(row)]
    assert {type(tensor) for tensor in tensors} == {torch.Tensor}


def test_steps_with_the_same_prompts_share_their_conditioning() -> None:
    conditioner = Conditioner(BlankTextEncoders(), CHECKPOINT)
    spec = replace(SPEC, prompt="[a fox|a cat]", negative_prompt="[blur::4]")
    scheduled = conditioner.condition(spec)
    assert len(scheduled.by_step) == 10
    assert scheduled.at(0) is scheduled.at(2)
    assert scheduled.at(5) is scheduled.at(9)
    distinct = {id(conditioning): conditioning for conditioning in scheduled.by_step}.values()
    assert len(distinct) == 4
    assert len({id(conditioning.positive) for conditioning in distinct}) == 2
    assert len({id(conditioning.negative) for conditioning in distinct}) == 2


def test_all_prompts_of_an_image_are_equally_long_whatever_its_step() -> None:
    encoders = RecordingTextEncoders()
    spec = replace(SPEC, prompt="[a BREAK b BREAK c:d:3]", negative_prompt="[e:f BREAK g:0.5]")
    scheduled = Conditioner(encoders, CHECKPOINT).condition(spec, first_step=5)
    assert scheduled.chunks == 3
    assert encoders.encoded == [("d", 3), ("f BREAK g", 3)]
    assert scheduled.at(5) is scheduled.at(9)
    assert scheduled.warnings == ("a BREAK b BREAK c", "d", "e", "f BREAK g")


@pytest.mark.parametrize(
    ("prompt", "negative", "max_chunks"),
    [
        ("a fox", "blur", 32),
        ("[a|b|c]", "blur", 10),
        ("[a|b]", "[c|d|e|f]", 8),
        ("[a|b|c|d|e|f|g|h|i|j|k|l|m|n|o|p]", "blur", 2),
    ],
)
def test_the_prompts_of_an_image_share_the_chunks_of_one(
    prompt: str, negative: str, max_chunks: int
) -> None:
    encoders = RecordingTextEncoders()
    spec = replace(SPEC, prompt=prompt, negative_prompt=negative, steps=20)
    Conditioner(encoders, CHECKPOINT).condition(spec)
    assert set(encoders.max_chunks) == {max_chunks}


def test_a_prompt_without_marks_is_encoded_once() -> None:
    encoders = RecordingTextEncoders()
    scheduled = Conditioner(encoders, CHECKPOINT).condition(replace(SPEC, negative_prompt="blur"))
    assert encoders.encoded == [("a fox", 1), ("blur", 1)]
    assert len(set(map(id, scheduled.by_step))) == 1


def test_a_sample_that_is_only_decoded_has_the_conditioning_of_its_last_step() -> None:
    encoders = RecordingTextEncoders()
    spec = replace(SPEC, prompt="[a:b:0.5]", guidance=1.0)
    Conditioner(encoders, CHECKPOINT).condition(spec, first_step=10)
    assert encoders.encoded == [("b", 1)]
