"""What is written down of the settings: the example, and the table of the documentation."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from serve_app.config.serve_config import read_config
from serve_app.config.settings import VARIABLES, Settings
from serve_app.config.settings_reference import markdown_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


EXAMPLE = (ROOT / ".env.example").read_text()
EVERY_LINE = re.sub("^#(?=[A-Z0-9_]+=)", "", EXAMPLE, flags=re.MULTILINE)


def test_the_example_names_every_setting_and_is_legal(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text(EVERY_LINE)
    settings = Settings.read(folder=tmp_path)
    assert settings.image_service_base_url == "http://localhost:4000"
    named = [line.split("=")[0] for line in EVERY_LINE.splitlines() if line and line[0] != "#"]
    assert sorted(named) == sorted({*VARIABLES, "GEMINI_API_KEY"})


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text(EVERY_LINE)
    address = {"image_service_base_url"}  # the guide's own, which is set
    assert Settings.read(folder=tmp_path).model_dump(exclude=address) == Settings().model_dump(
        exclude=address
    )


def test_a_copy_of_the_example_changes_no_setting_of_a_config(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text(EXAMPLE)
    for path in (ROOT / "configs").glob("*.yaml"):
        given = read_config(path).args.settings
        fields = Settings.read(given).model_dump(include={VARIABLES[name] for name in given})
        copied = Settings.read(given, tmp_path).model_dump(include=set(fields))
        assert copied == fields
        assert set(fields) <= set(copied)


def test_the_guides_export_works_on_the_example() -> None:
    script = "export $(grep -v '^#' .env.example | xargs) && env"
    plain = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    )
    assert "BACKEND_PORT=4000" in done.stdout.splitlines()
    assert "IMAGE_SERVICE_BASE_URL=http://localhost:4000" in done.stdout.splitlines()
    exported = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    # An empty value would unset what is written into the file later
    assert not [name for name, value in exported if not value]


def test_the_reference_has_a_row_for_every_setting() -> None:
    rows = markdown_table().splitlines()
    assert [re.findall("`([A-Z0-9_]+)`", row)[0] for row in rows[2:]] == [*VARIABLES]
    assert len({row.count(" | ") for row in rows}) == 1
    assert (
        "| `MAX_BODY_MIB` | integer | `32` | 1 to 1024 | Longest request body, in MiB "
        "(2**20 bytes) | `MAX_BODY_MB` |" in rows
    )
    precision = next(row for row in rows if "`MODEL_PRECISION`" in row)
    assert "| text | empty | `fp32`, `fp16`, `bf16`, `auto` |" in precision


def test_the_configuration_page_has_the_table_of_the_settings() -> None:
    page = ROOT / "docs" / "configuration.md"
    if not page.exists():
        pytest.skip("the page is not written yet")
    assert markdown_table() in page.read_text()
