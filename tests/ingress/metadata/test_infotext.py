"""The text under a picture, read back into the web UI's fields."""

import json

import pytest
from hypothesis import given
from hypothesis.strategies import text

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.ingress.metadata.infotext import read_infotext
from serve_app.ingress.metadata.record import infotext

SPEC = ImageSpec(
    prompt="a fox, (red:1.3)\nin snow: deep",
    negative_prompt="blur, noise",
    seed=7,
    width=64,
    height=96,
    steps=20,
    guidance=6.5,
    sampler=Sampler.DPMPP_2M_KARRAS,
    extensions=(ExtensionRef("lora", "ink", 0.8),),
)


def test_our_own_text_is_read_back() -> None:
    fields = read_infotext(infotext(SPEC, {"base": 'a, "name": b'}))
    assert fields == {
        "Prompt": "a fox, (red:1.3)\nin snow: deep <lora:ink:0.8>",
        "Negative prompt": "blur, noise",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "6.5",
        "Seed": "7",
        "Size": "64x96",
        "Model": 'a, "name": b',
    }


def test_a_text_of_the_web_ui_is_read() -> None:
    written = (
        "a lighthouse\nNegative prompt: people,\ncars\nSteps: 30, Sampler: Euler a, "
        "CFG scale: 7, Seed: 12, Size: 1024x1024, Model hash: 31e35c80fc, "
        'Lora hashes: "ink: 0123, pen: 4567", Version: v1.10.1'
    )
    fields = read_infotext(written)
    assert (fields["Prompt"], fields["Negative prompt"]) == ("a lighthouse", "people,\ncars")
    assert (fields["Lora hashes"], fields["Version"]) == ("ink: 0123, pen: 4567", "v1.10.1")


def test_a_text_without_settings_is_a_prompt() -> None:
    assert read_infotext("a fox: red")["Prompt"] == "a fox: red"
    assert read_infotext("") == {"Prompt": "", "Negative prompt": ""}


def test_a_setting_in_broken_quotes_is_kept_as_it_is() -> None:
    fields = read_infotext('a\nSteps: 1, Seed: 2, Size: 8x8, Odd: "\\x"')
    assert fields["Odd"] == '"\\x"'


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [" ", "a", "a:", '"', 'a:"', "a, ", "-/"])
def test_a_long_line_is_read_at_once(piece: str) -> None:
    assert read_infotext("a" + piece * 100_000)["Prompt"]
    assert read_infotext("a" + piece * (9_990 // len(piece)))


@given(text())
def test_any_text_is_read(written: str) -> None:
    assert json.dumps(read_infotext(written))
