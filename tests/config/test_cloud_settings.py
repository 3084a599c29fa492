"""When a key turns the cloud on, and when it must not."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.config.catalog import find_checkpoints, service_info
from serve_app.config.cloud_model import gemini_options, with_cloud
from serve_app.config.cloud_settings import has_unused_key
from serve_app.config.settings import VARIABLES, Settings
from serve_app.core.errors import SettingsError

KEY = "AIza-canary-of-the-settings"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"AURA_{name}", raising=False)


def key_of(settings: Settings) -> str | None:
    key = settings.gemini_api_key
    return None if key is None else key.get_secret_value()


def models_of(settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that a service with these settings has."""
    info = with_cloud(service_info(settings, find_checkpoints(settings), "cpu"), settings)
    return info.model_names


def test_the_demo_without_a_key_stays_local(tmp_path: Path) -> None:
    settings = Settings.read(folder=tmp_path)
    assert models_of(settings) == ("demo",)
    assert gemini_options(settings) is None


def test_a_key_that_is_merely_exported_stays_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_MODEL", "gemini-for-the-terminal")
    monkeypatch.setenv("GEMINI_API_KEYS", "of another program")  # not even misspelt
    settings = Settings.read(folder=tmp_path)
    assert settings == Settings()
    assert models_of(settings) == ("demo",)
    assert has_unused_key(os.environ)


@pytest.mark.parametrize("file", [".env", ".env.local"])
def test_a_key_in_a_file_turns_the_cloud_on(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(f"GEMINI_API_KEY={KEY}\n")
    settings = Settings.read(folder=tmp_path)
    assert key_of(settings) == KEY
    assert models_of(settings) == ("gemini", "demo")


def test_a_key_in_the_args_of_a_config_turns_the_cloud_on(tmp_path: Path) -> None:
    settings = Settings.read({"GEMINI_API_KEY": KEY, "GEMINI_MODEL": "another-1.0"}, tmp_path)
    assert models_of(settings) == ("gemini", "demo")
    options = gemini_options(settings)
    assert options is not None
    assert options.generate_url == (
        "https://generativelanguage.googleapis.com/v1beta/models/another-1.0:generateContent"
    )


def test_in_the_environment_the_prefix_says_that_a_key_is_meant_for_this_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "of another program")
    monkeypatch.setenv("AURA_GEMINI_API_KEY", KEY)
    assert key_of(Settings.read(folder=tmp_path)) == KEY


def test_in_an_environment_of_its_own_the_bare_name_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the image, to which compose hands .env.local as variables."""
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    assert "AURA_OWN_ENVIRONMENT=1" in dockerfile
    monkeypatch.setenv("AURA_OWN_ENVIRONMENT", "1")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    assert key_of(Settings.read(folder=tmp_path)) == KEY
    assert not has_unused_key(os.environ)


def test_an_exported_key_does_not_change_that_of_a_file_and_an_empty_one_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env.local").write_text(f"GEMINI_API_KEY={KEY}\n")
    monkeypatch.setenv("GEMINI_API_KEY", "of another program")
    assert key_of(Settings.read(folder=tmp_path)) == KEY
    monkeypatch.setenv("GEMINI_API_KEY", "")
    assert key_of(Settings.read(folder=tmp_path)) is None


def test_a_local_model_stays_the_default(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("{}")
    settings = Settings(gemini_api_key=SecretStr(KEY), models_file=file)
    assert models_of(settings) == ("demo", "gemini")
    assert not Settings(
        gemini_api_key=SecretStr(KEY), model_checkpoint_dir=Path("/models/sdxl")
    ).is_cloud_default


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("GEMINI_BASE_URL=http://gateway.example", "must be an https address"),
        ("GEMINI_BASE_URL=https://user:pass@gateway.example", "must be an https address"),
        ("GEMINI_BASE_URL=https://gateway.example/?key=1", "must be an https address"),
        ("GEMINI_BASE_URL=ftp://gateway.example", "must be an https address"),
        ("GEMINI_MODEL=../files", "must be the name of a model"),
        ("GEMINI_MODEL=a:b", "must be the name of a model"),
        ("GEMINI_IMAGE_SIZE=8K", "must be '1K', '2K' or '4K'"),
        ("GEMINI_MAX_CALLS=0", "must be at least 1"),
    ],
)
def test_an_illegal_value_is_refused(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / ".env.local").write_text(line)
    with pytest.raises(SettingsError, match=problem):
        Settings.read(folder=tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "http://localhost:1/a", "https://a.b/c/"])
def test_a_gateway_may_be_on_this_machine_or_behind_tls(tmp_path: Path, url: str) -> None:
    (tmp_path / ".env.local").write_text(f"GEMINI_BASE_URL={url}")
    assert Settings.read(folder=tmp_path).gemini_base_url == url.rstrip("/")
