"""`aura simulate`: printed, plotted, and clear about a missing file or library."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from serve_app.cli.main import commands
from tests.support.blocked_imports import blocked_imports


def simulate(trace: str, output: Path) -> Result:
    arguments = ["--gpus", "4", "--trace", trace, "--seconds", "20", "-o", str(output)]
    return CliRunner().invoke(commands, ["simulate", *arguments])


@pytest.mark.parametrize("trace", ["steady", pytest.param("bursts", marks=pytest.mark.long)])
def test_a_small_cluster_is_simulated_and_plotted(tmp_path: Path, trace: str) -> None:
    output = tmp_path / "out.png"
    result = simulate(trace, output)
    assert result.exit_code == 0, result.output
    assert "owed work" in result.output
    assert "planning one step with 1,000 samples in flight" in result.output
    assert result.output.rstrip().endswith(str(output))
    with Image.open(output) as image:
        assert image.width > 1000


@pytest.mark.parametrize("trace", ["steady", pytest.param("bursts", marks=pytest.mark.long)])
def test_without_matplotlib_the_table_is_printed_and_the_extra_named(
    tmp_path: Path, trace: str
) -> None:
    output = tmp_path / "out.png"
    with blocked_imports("matplotlib"):
        result = simulate(trace, output)
    assert result.exit_code == 0, result.output
    assert "owed work" in result.output
    assert "pip install 'aura-serve[plots]'" in result.output.splitlines()[-1]
    assert not output.exists()


def test_a_flood_shows_what_each_caller_gets_under_each_service(tmp_path: Path) -> None:
    arguments = ["--gpus", "2", "--trace", "flood", "--seconds", "4"]
    result = CliRunner().invoke(commands, ["simulate", *arguments])
    assert result.exit_code == 0, result.output
    assert result.output.count("fair, two ingresses") == 2
    assert result.output.count("by urgency alone") == 2


def test_a_file_with_callers_is_simulated_with_and_without_fairness(tmp_path: Path) -> None:
    trace = tmp_path / "callers.csv"
    trace.write_text("at,steps,caller,weight\n0,20,alice,3\n0,30,bob,1\n")
    result = CliRunner().invoke(commands, ["simulate", "--gpus", "2", "--trace", str(trace)])
    assert result.exit_code == 0, result.output
    assert result.output.count("alice") == result.output.count("bob") == 3


def test_a_trace_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    result = simulate(str(tmp_path / "none.csv"), tmp_path / "out.png")
    assert result.exit_code == 2
    assert "is neither a file nor one of steady, bursts, day, flood, overload" in result.output


def test_a_file_is_simulated_until_its_last_image(tmp_path: Path) -> None:
    trace = tmp_path / "eight.csv"
    trace.write_text("at,steps\n0,20\n3,30\n8,20\n")
    arguments = ["--gpus", "4", "--trace", str(trace), "-o", str(tmp_path / "out.png")]
    result = CliRunner().invoke(commands, ["simulate", *arguments])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("3 images in 8 s on 4 GPUs")


@pytest.mark.long  # the simulator's own tests run one too
def test_an_overload_is_simulated_and_its_goodput_printed() -> None:
    arguments = ["simulate", "--gpus", "2", "--trace", "overload"]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    for heading in ("goodput", "refused", "late", "begun", "during", "after"):
        assert heading in result.output
    assert "1.5x, 2 GPUs" in result.output
    assert "planning one step with 1,000 samples in flight" in result.output
