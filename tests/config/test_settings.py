import os
import subprocess
from pathlib import Path

import pytest

from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_environment_wins_over_env_local_over_env_over_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("IMAGE_COUNT=3\nBACKEND_PORT=4003\nSNAPSHOT_EVERY=3\n")
    (tmp_path / ".env.local").write_text("IMAGE_COUNT=4\nBACKEND_PORT=4004\n")
    monkeypatch.setenv("IMAGE_COUNT", "5")
    settings = Settings.read({"SNAPSHOT_EVERY": "9", "MODEL_DEVICE": "cpu"}, tmp_path)
    assert settings.image_count == 5
    assert settings.backend_port == 4004
    assert settings.snapshot_every == 3
    assert settings.model_device == "cpu"
    assert settings.model_determinism == "strict"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MODEL_DEVISE", "MODEL_DEVICE"),
        ("MODEL_CHECKPOINT_DIRECTORY", "MODEL_CHECKPOINT_DIR"),
        ("ENABLE_XFORMER", "ENABLE_XFORMERS"),
        ("MODEL_BATCH_SIZE", "MODEL_MAX_BATCH_SIZE"),
        ("model_precison", "MODEL_PRECISION"),
    ],
)
def test_a_near_miss_is_an_error_that_names_what_was_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    (tmp_path / ".env.local").write_text(f"{name}=1\n")
    with pytest.raises(SettingsError, match=f"{name} is no setting .* did you mean {meant}"):
        Settings.read(folder=tmp_path)


def test_the_frontends_own_names_pass(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text("GEMINI_API_KEY=abc\nVITE_API_URL=x\nNODE_ENV=dev\n")
    Settings.read(folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MODEL_DEVICE", "gpu", "MODEL_DEVICE=gpu: must be auto, cuda, cuda:N, mps or cpu"),
        ("MODEL_PRECISION", "fp8", "MODEL_PRECISION=fp8"),
        ("MODEL_MAX_BATCH_SIZE", "0", "MODEL_MAX_BATCH_SIZE=0"),
        ("BACKEND_PORT", "port", "BACKEND_PORT=port"),
        ("ENABLE_XFORMERS", "maybe", "ENABLE_XFORMERS=maybe"),
    ],
)
def test_an_illegal_value_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings.read(folder=tmp_path)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_empty_values_count_as_unset(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text("MODEL_CHECKPOINT_DIR=\nMODEL_MAX_BATCH_SIZE=\n")
    settings = Settings.read(folder=tmp_path)
    assert settings.model_checkpoint_dir is None
    assert settings.model_max_batch_size is None


def test_paths_do_not_depend_on_where_a_replica_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", "./models/sdxl")
    assert Settings.read().model_checkpoint_dir == tmp_path / "models" / "sdxl"


def test_origins_are_the_list_our_own_address_and_local_development(tmp_path: Path) -> None:
    settings = Settings.read(
        {
            "ALLOWED_ORIGINS": "https://a.example, https://b.example",
            "IMAGE_SERVICE_BASE_URL": "https://me.example/",
            "VITE_PORT": "5199",
        },
        tmp_path,
    )
    assert settings.origins[:3] == ("https://a.example", "https://b.example", "https://me.example")
    assert "http://localhost:5199" in settings.origins
    assert "http://127.0.0.1:3000" in settings.origins


def test_an_origin_is_reduced_to_what_browsers_send(tmp_path: Path) -> None:
    told = {
        "ALLOWED_ORIGINS": "https://A.example:443/,http://b.example:81/page,https://münchen.de",
        "IMAGE_SERVICE_BASE_URL": "http://[fd00::1]:4000/images/",
        "ALLOWED_HOSTS": "pictures.example",
    }
    settings = Settings.read(told, tmp_path)
    assert settings.origins[:4] == (
        "https://a.example",
        "http://b.example:81",
        "https://xn--mnchen-3ya.de",
        "http://[fd00::1]:4000",
    )
    assert settings.hosts == ("pictures.example", "[fd00::1]")
    assert settings.image_service_base_url == "http://[fd00::1]:4000/images"


@pytest.mark.parametrize(
    "origin", ["*", "a.example", "ftp://a.example", "https://", "https://a@b", "https://a:9x"]
)
def test_what_is_no_origin_is_told(tmp_path: Path, origin: str) -> None:
    for name in ("ALLOWED_ORIGINS", "IMAGE_SERVICE_BASE_URL"):
        with pytest.raises(SettingsError, match=f"{name}=.*must"):
            Settings.read({name: origin}, tmp_path)


def test_the_example_names_every_setting_and_is_legal(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env.local").write_text(text)
    settings = Settings.read(folder=tmp_path)
    assert settings.image_service_base_url == "http://localhost:4000"
    named = {line.split("=")[0] for line in text.splitlines() if line and line[0] != "#"}
    assert named == {f.upper() for f in Settings.model_fields} | {"GEMINI_API_KEY"}


def test_the_guides_export_works_on_the_example() -> None:
    script = "export $(grep -v '^#' .env.example | xargs) && env"
    plain = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    )
    assert "BACKEND_PORT=4000" in done.stdout.splitlines()
    assert "IMAGE_SERVICE_BASE_URL=http://localhost:4000" in done.stdout.splitlines()
