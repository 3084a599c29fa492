"""Two lines of .env.local change, and not a byte beside them."""

import subprocess
from pathlib import Path

import pytest

from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError
from serve_app.hub.env_file import as_value, edited, write

BASE, REFINER = "MODEL_CHECKPOINT_DIR", "MODEL_REFINER_CHECKPOINT_DIR"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"MODEL_CHECKPOINT_DIR=./m\n"),
        (b"A=1\nMODEL_CHECKPOINT_DIR=\nB=2\n", b"A=1\nMODEL_CHECKPOINT_DIR=./m\nB=2\n"),
        (b"A=1", b"A=1\nMODEL_CHECKPOINT_DIR=./m\n"),
        (b"A=1\r\n", b"A=1\r\nMODEL_CHECKPOINT_DIR=./m\r\n"),
        (b"MODEL_CHECKPOINT_DIR=/old\r\nA=1", b"MODEL_CHECKPOINT_DIR=./m\r\nA=1"),
        (b"MODEL_CHECKPOINT_DIR='/an old one'", b"MODEL_CHECKPOINT_DIR=./m"),
        (b"export MODEL_CHECKPOINT_DIR = x\n", b"export MODEL_CHECKPOINT_DIR=./m\n"),
        (
            b"MODEL_CHECKPOINT_DIR=1\nMODEL_CHECKPOINT_DIR=2\n",
            b"MODEL_CHECKPOINT_DIR=./m\nMODEL_CHECKPOINT_DIR=./m\n",
        ),
        (
            b"# MODEL_CHECKPOINT_DIR=/no\nMY_MODEL_CHECKPOINT_DIR=a\nMODEL_CHECKPOINT_DIR_2=b\n",
            b"# MODEL_CHECKPOINT_DIR=/no\nMY_MODEL_CHECKPOINT_DIR=a\nMODEL_CHECKPOINT_DIR_2=b\n"
            b"MODEL_CHECKPOINT_DIR=./m\n",
        ),
        (b"\xff\xfe  odd \x00\n\n\n", b"\xff\xfe  odd \x00\n\n\nMODEL_CHECKPOINT_DIR=./m\n"),
    ],
)
def test_only_the_lines_of_the_variable_change(before: bytes, after: bytes) -> None:
    assert edited(before, {BASE: "./m"}) == after
    assert edited(after, {BASE: "./m"}) == after


def test_a_file_that_is_not_there_is_made_from_the_example(tmp_path: Path) -> None:
    file, example = tmp_path / ".env.local", tmp_path / ".env.example"
    before = example.read_bytes()
    write(file, example, {BASE: "./models/sdxl-base", REFINER: "./models/sdxl-refiner"})
    was, now = before.splitlines(), file.read_bytes().splitlines()
    assert len(was) == len(now)
    assert [new for old, new in zip(was, now, strict=True) if old != new] == [
        b"MODEL_CHECKPOINT_DIR=./models/sdxl-base",
        b"MODEL_REFINER_CHECKPOINT_DIR=./models/sdxl-refiner",
    ]
    assert example.read_bytes() == before


def test_without_an_example_the_lines_stand_alone(tmp_path: Path) -> None:
    write(tmp_path / ".env.local", tmp_path / "none", {BASE: "./m"})
    assert (tmp_path / ".env.local").read_bytes() == b"MODEL_CHECKPOINT_DIR=./m\n"


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / ".env.local"
    real.write_text("API_KEYS=secret\n")
    real.chmod(0o600)
    link.symlink_to(real)
    write(link, tmp_path / ".env.example", {BASE: "./m"})
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o600
    assert real.read_text() == "API_KEYS=secret\nMODEL_CHECKPOINT_DIR=./m\n"


def test_the_guides_export_and_our_settings_read_what_was_written(tmp_path: Path) -> None:
    value = as_value(Path("models/año_1.0+x@y:z,%"))
    write(tmp_path / ".env.local", tmp_path / ".env.example", {BASE: value})
    script = "export $(grep -v '^#' .env.local | xargs); printf %s \"$MODEL_CHECKPOINT_DIR\""
    told = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == (value, "")
    assert Settings.read(folder=tmp_path).model_checkpoint_dir == tmp_path / value


@pytest.mark.parametrize(
    ("folder", "value"),
    [("models/x", "./models/x"), ("./x", "./x"), ("../x", "../x"), ("/data/x", "/data/x")],
)
def test_a_folder_is_written_as_it_was_given(folder: str, value: str) -> None:
    assert as_value(Path(folder)) == value


@pytest.mark.parametrize(
    "folder", ["my models", "it's", 'a"b', "$HOME", "a#b", "a*", "a\\b", "a=b"]
)
def test_a_folder_that_a_shell_would_read_is_refused(folder: str) -> None:
    with pytest.raises(SettingsError, match=r"no spaces, no quotes\. Choose another with --folder"):
        as_value(Path(folder))
