"""`python -m serve_app simulate`: printed, plotted, and honest about a trace that is not there."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from serve_app.cli.main import commands


@pytest.mark.parametrize("trace", ["steady", "bursts"])
def test_a_small_cluster_is_simulated_and_plotted(tmp_path: Path, trace: str) -> None:
    picture = tmp_path / "out.png"
    asked = ["simulate", "--gpus", "4", "--trace", trace, "--seconds", "20", "-o", str(picture)]
    done = CliRunner().invoke(commands, asked)
    assert done.exit_code == 0, done.output
    assert "owed work" in done.output
    assert "planning one step with 1,000 samples in flight" in done.output
    with Image.open(picture) as image:
        assert image.width > 1000


def test_a_trace_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["simulate", "--trace", str(tmp_path / "none.csv")])
    assert done.exit_code == 2
    assert "can't be read" in done.output
