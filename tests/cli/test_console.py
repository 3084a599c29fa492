"""Errors on the terminal, and the name that usage lines show."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.console import print_error
from serve_app.core.errors import CheckpointError, SettingsError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            CheckpointError("lacks unet", subject="MODEL_CHECKPOINT_DIR=/a", remedy="Get it: b"),
            "error MODEL_CHECKPOINT_DIR=/a lacks unet. Get it: b\n",
        ),
        (
            SettingsError("COLOUR is not a setting", "COLOUR", remedy="Did you mean [x]?"),
            "error COLOUR is not a setting. Did you mean [x]?\n",
        ),
        (OSError("no space [left] on device"), "error no space [left] on device\n"),
        (OSError(), "error OSError\n"),
    ],
)
def test_an_error_is_one_line_with_subject_problem_and_remedy(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_error(error)
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("program", "usage"),
    [("-m", "Usage: python -m serve_app "), ("aura", "Usage: aura ")],
)
def test_usage_lines_show_what_the_reader_typed(program: str, usage: str, tmp_path: Path) -> None:
    script = tmp_path / "aura"  # as the console script of the package is written
    script.write_text("from serve_app.cli.main import main\nmain()\n")
    command = ["-m", "serve_app"] if program == "-m" else [str(script)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert usage in done.stdout


def test_the_package_installs_the_command() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["aura"].split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
