import json
from pathlib import Path

import pytest

from serve_app.bench.cpu.command import compare
from serve_app.bench.cpu.unet_step import named_variants
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.runtime.checkpoints.bundled import demo_folder


@pytest.mark.long
def test_the_command_measures_at_toy_size_and_writes_json_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(
        checkpoint=demo_folder(Stage.BASE),
        side=128,
        runs=1,
        pairs=1,
        steps=1,
        threads=1,
        output=tmp_path / "cpu.png",
        only=["Eager fp32"],
    )
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["variant"]["label"] for row in found["steps"]] == [
        "eager fp32",
        "eager fp32, channels-last",
    ]
    assert found["images"]["bf16"]["ratio"] > 0
    assert found["images"]["fp32"]["ratio"] > 0
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    assert "engine ÷ stock" in capsys.readouterr().out


def test_ways_are_chosen_by_words_of_their_names() -> None:
    assert [way.label for way in named_variants(["openvino", "int8"])] == [
        "served bf16, int8",
        "OpenVINO bf16",
    ]
    with pytest.raises(OperatorError, match="--only names no way to run the UNet"):
        named_variants(["tensorrt"])
