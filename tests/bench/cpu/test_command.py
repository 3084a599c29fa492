import json
from pathlib import Path

import pytest

from serve_app.bench.cpu.command import compare
from serve_app.bench.cpu.unet_step import VARIANTS
from serve_app.core.diffusion.spec import Stage
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
        variants=VARIANTS[:1],
    )
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["variant"]["label"] for row in found["steps"]] == ["eager fp32"]
    assert found["images"]["bf16"]["ratio"] > 0
    assert found["images"]["fp32"]["ratio"] > 0
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    assert "engine ÷ stock" in capsys.readouterr().out
