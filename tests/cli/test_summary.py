"""What `aura up` shows of a service that is ready."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.cli.summary import print_summary
from serve_app.config.settings import Settings
from serve_app.ingress.access import PUBLIC_PATHS


def test_the_summary_names_every_page_that_needs_no_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_summary(Settings(api_keys=("k" * 20,)), {}, Path("/logs"))
    lines = "".join(capsys.readouterr()).splitlines()
    (line,) = [line for line in lines if line.lstrip().startswith("keys")]
    for path in PUBLIC_PATHS - {"/", "/openapi.json"}:  # which belong to /docs
        assert path in line


def test_the_summary_says_where_the_interface_is_described_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_summary(Settings(backend_port=4321), {}, Path("/logs"))
    lines = "".join(capsys.readouterr()).splitlines()
    (line,) = [line for line in lines if line.lstrip().startswith("docs")]
    assert line.split() == ["docs", "http://localhost:4321/docs"]


def summary_of(
    settings: Settings, capsys: pytest.CaptureFixture[str], **environ: str
) -> dict[str, str]:
    """Return what the summary says, by its labels; a continued line under its first words."""
    print_summary(settings, {}, Path("/logs"), environ)
    lines = "".join(capsys.readouterr()).splitlines()
    return {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}


def test_the_summary_says_that_the_cloud_draws_and_costs_money(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = summary_of(Settings(gemini_api_key=SecretStr("AIza-canary")), capsys)
    assert shown["model"] == "gemini: gemini-nano-banana-2.1 in Google's cloud, for money"
    assert shown["prompts"] == "and input images are sent to Google"
    assert "for" not in shown  # real images: these are
    assert "canary" not in str(shown)


def test_the_summary_says_when_the_cloud_is_beside_a_local_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings(
        gemini_api_key=SecretStr("AIza-canary"), model_checkpoint_dir=Path("/models/sdxl")
    )
    shown = summary_of(settings, capsys)
    assert shown["model"] == "sdxl"
    assert shown["cloud"].startswith("requests for the model gemini go to Google's gemini-nano")


def test_the_summary_says_why_a_key_of_the_shell_is_not_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = summary_of(Settings(), capsys, GEMINI_API_KEY="AIza-canary")
    assert shown["model"] == "demo: plain shapes"
    assert shown["cloud"] == ("off: of the shell, AURA_GEMINI_API_KEY alone counts")
    assert "cloud" not in summary_of(Settings(), capsys)


def test_the_summary_says_where_assistants_call(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(Settings(), {}, Path("/logs"))
    assert "/mcp" not in "".join(capsys.readouterr())
    print_summary(Settings(backend_port=4321, mcp_api=True), {}, Path("/logs"))
    assert "http://localhost:4321/mcp" in "".join(capsys.readouterr())
