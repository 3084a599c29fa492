"""Setting variables in .env.local changes their lines and nothing else."""

import subprocess
from pathlib import Path

import pytest

from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError
from serve_app.hub.env_file import path_value, with_variables, write

BASE, REFINER = "MODEL_CHECKPOINT_DIR", "MODEL_REFINER_CHECKPOINT_DIR"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b"MODEL_CHECKPOINT_DIR=./m\n"),
        (b"A=1\nMODEL_CHECKPOINT_DIR=\nB=2\n", b"A=1\nMODEL_CHECKPOINT_DIR=./m\nB=2\n"),
        (b"A=1\n#MODEL_CHECKPOINT_DIR=\n", b"A=1\nMODEL_CHECKPOINT_DIR=./m\n"),
        (
            b"#MODEL_CHECKPOINT_DIR=\nMODEL_CHECKPOINT_DIR=2\n",
            b"#MODEL_CHECKPOINT_DIR=\nMODEL_CHECKPOINT_DIR=./m\n",
        ),
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
def test_only_the_lines_of_the_variable_change(old: bytes, new: bytes) -> None:
    assert with_variables(old, {BASE: "./m"}) == new
    assert with_variables(new, {BASE: "./m"}) == new


def test_a_missing_file_is_created_from_the_example(tmp_path: Path) -> None:
    file, example = tmp_path / ".env.local", tmp_path / ".env.example"
    content = example.read_bytes()
    write(file, example, {BASE: "./models/sdxl-base", REFINER: "./models/sdxl-refiner"})
    lines = zip(content.splitlines(), file.read_bytes().splitlines(), strict=True)
    assert [new for old, new in lines if old != new] == [
        b"MODEL_CHECKPOINT_DIR=./models/sdxl-base",
        b"MODEL_REFINER_CHECKPOINT_DIR=./models/sdxl-refiner",
    ]
    assert example.read_bytes() == content


def test_without_an_example_the_file_has_the_variables_only(tmp_path: Path) -> None:
    write(tmp_path / ".env.local", tmp_path / "none", {BASE: "./m"})
    assert (tmp_path / ".env.local").read_bytes() == b"MODEL_CHECKPOINT_DIR=./m\n"


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / ".env.local"
    target.write_text("API_KEYS=secret\n")
    target.chmod(0o600)
    link.symlink_to(target)
    write(link, tmp_path / ".env.example", {BASE: "./m"})
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.read_text() == "API_KEYS=secret\nMODEL_CHECKPOINT_DIR=./m\n"


def test_a_shell_and_our_settings_read_what_was_written(tmp_path: Path) -> None:
    value = path_value(Path("models/año_1.0+x@y:z,%"))
    write(tmp_path / ".env.local", tmp_path / ".env.example", {BASE: value})
    script = "export $(grep -v '^#' .env.local | xargs); printf %s \"$MODEL_CHECKPOINT_DIR\""
    shell = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (shell.stdout, shell.stderr) == (value, "")
    assert Settings.read(folder=tmp_path).model_checkpoint_dir == tmp_path / value


@pytest.mark.parametrize(
    ("folder", "value"),
    [("models/x", "./models/x"), ("./x", "./x"), ("../x", "../x"), ("/data/x", "/data/x")],
)
def test_a_folder_is_written_as_it_was_given(folder: str, value: str) -> None:
    assert path_value(Path(folder)) == value


@pytest.mark.parametrize(
    "folder", ["my models", "it's", 'a"b', "$HOME", "a#b", "a*", "a\\b", "a=b"]
)
def test_a_folder_with_characters_that_a_shell_interprets_is_refused(folder: str) -> None:
    with pytest.raises(SettingsError, match=r"no spaces and no quotes\. Choose another"):
        path_value(Path(folder))
