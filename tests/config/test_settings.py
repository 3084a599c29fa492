"""Settings: where they are read from, by which names, and what is refused."""

import logging
from pathlib import Path
from typing import get_args

import pytest

from serve_app.config.deprecated_names import SETTINGS as DEPRECATED
from serve_app.config.settings import VARIABLES, Settings, check_given
from serve_app.core.errors import SettingsError

ROOT = Path(__file__).parents[2]
GUIDE = (  # the names that users of the guide have in their files
    "IMAGE_SERVICE_BASE_URL",
    "MODEL_CHECKPOINT_DIR",
    "MODEL_REFINER_CHECKPOINT_DIR",
    "MODEL_DEVICE",
    "MODEL_PRECISION",
    "ENABLE_XFORMERS",
    "MODEL_MAX_BATCH_SIZE",
    "BACKEND_PORT",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_environment_wins_over_env_local_over_env_over_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("VITE_PORT=3\nBACKEND_PORT=4003\nSNAPSHOT_INTERVAL_STEPS=3\n")
    (tmp_path / ".env.local").write_text("VITE_PORT=4\nBACKEND_PORT=4004\n")
    monkeypatch.setenv("VITE_PORT", "5")
    settings = Settings.read({"SNAPSHOT_INTERVAL_STEPS": "9", "MODEL_DEVICE": "cpu"}, tmp_path)
    assert settings.vite_port == 5
    assert settings.backend_port == 4004
    assert settings.snapshot_interval_steps == 3
    assert settings.model_device == "cpu"
    assert settings.model_determinism == "strict"


def test_every_setting_has_a_prefixed_name_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AURA_API_KEYS=a,b\nAURA_METRICS_PORT=4100\naura_vite_port=9\n")
    settings = Settings.read(folder=tmp_path)
    assert settings.api_keys == ("a", "b")
    assert (settings.metrics_port, settings.vite_port) == (4100, 9)


def test_sources_keep_their_order_whichever_name_they_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env.local").write_text("AURA_BACKEND_PORT=4001\n")
    monkeypatch.setenv("BACKEND_PORT", "4002")
    assert Settings.read({"AURA_BACKEND_PORT": "4000"}, tmp_path).backend_port == 4002


@pytest.mark.parametrize("names", [("BACKEND_PORT", "AURA_"), ("AURA_", "BACKEND_PORT")])
def test_a_prefixed_name_wins_over_another_programs_bare_one(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    lines = {"BACKEND_PORT": "BACKEND_PORT=3000", "AURA_": "AURA_BACKEND_PORT=4001"}
    (tmp_path / ".env").write_text("\n".join(lines[name] for name in names))
    assert Settings.read(folder=tmp_path).backend_port == 4001


@pytest.mark.parametrize(
    ("first", "second"),
    [("AURA_API_KEYS", "aura_api_keys"), ("MAX_BODY_MB", "MAX_BODY_MIB")],
)
def test_two_names_of_one_setting_must_agree(tmp_path: Path, first: str, second: str) -> None:
    file = tmp_path / ".env.local"
    file.write_text(f"{first}=7\n{second}=7\n")
    Settings.read(folder=tmp_path)
    file.write_text(f"{first}=7\n{second}=8\n")
    with pytest.raises(SettingsError) as refused:
        Settings.read(folder=tmp_path)
    assert refused.value.problem == "are names of the same setting, with different values"
    assert refused.value.subject == f"{first} and {second} in {file}"
    assert refused.value.remedy == "Remove one of them"


@pytest.mark.parametrize(("old", "new"), DEPRECATED.items())
def test_an_old_name_is_understood_with_a_warning_that_gives_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    (tmp_path / ".env.local").write_text(f"{old}=3\n")
    assert getattr(Settings.read(folder=tmp_path), VARIABLES[new]) == 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{old} is deprecated and will be removed: use {new}" in record.getMessage()


def test_current_names_and_those_of_the_guide_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(GUIDE) <= set(VARIABLES)
    (tmp_path / ".env.local").write_text((ROOT / ".env.example").read_text())
    Settings.read(folder=tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MODEL_DEVISE", "MODEL_DEVICE"),
        ("MODEL_CHECKPOINT_DIRECTORY", "MODEL_CHECKPOINT_DIR"),
        ("ENABLE_XFORMER", "ENABLE_XFORMERS"),
        ("MODEL_BATCH_SIZE", "MODEL_MAX_BATCH_SIZE"),
        ("model_precison", "MODEL_PRECISION"),
        ("AURA_MODEL_DEVISE", "AURA_MODEL_DEVICE"),
        ("MODELS_IN_MEMRY", "MAX_LOADED_MODELS"),  # near an old name
        ("AURA_HOSTS", "AURA_HOST"),
        ("AURA_RATE_LIMITS", "AURA_RATE_LIMIT_MPSTEPS_PER_MINUTE"),
    ],
)
def test_a_near_miss_is_an_error_that_names_what_was_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    (tmp_path / ".env.local").write_text(f"{name}=1\n")
    with pytest.raises(SettingsError, match=f"{name} is not a setting .* mean {meant}") as refused:
        Settings.read(folder=tmp_path)
    assert (refused.value.variable, refused.value.suggestion) == (name, meant)


def test_variables_of_other_programs_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text(
        "VITE_API_URL=x\nNODE_ENV=dev\nAURA_THEME=dark\nAPI_KEY=a\n"
        "CHOST=x86_64-pc-linux-gnu\nPGHOST=db\nHOSTNAME=mybox\nHOSTTYPE=x86_64\nRHOST=a\n"
    )
    Settings.read(folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("MODEL_DEVICE", "gpu", "must be auto, cuda, cuda:N, mps or cpu"),
        ("MODEL_PRECISION", "fp8", "must be 'fp32', 'fp16', 'bf16' or 'auto'"),
        ("MODEL_MAX_BATCH_SIZE", "0", "must be at least 1"),
        ("MODEL_MAX_BATCH_SIZE", "65", "must be at most 64"),
        ("RATE_BURST_MPSTEPS", "0", "must be above 0"),
        ("AURA_BACKEND_PORT", "port", "must be a whole number"),
        ("ENABLE_XFORMERS", "maybe", "must be 1 or 0, or true or false"),
    ],
)
def test_an_illegal_value_is_refused_in_one_line_with_what_is_legal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings.read(folder=tmp_path)
    assert str(refused.value) == f"{name}={value} {problem}"
    assert refused.value.variable == name


def test_settings_in_a_config_must_be_settings_with_legal_values() -> None:
    check_given({"MODEL_DEVICE": "cpu", "AURA_VITE_PORT": "1", "IMAGE_COUNT": "2", "API_KEYS": ""})
    with pytest.raises(SettingsError, match=r"COLOUR is not a setting .* See \.env\.example"):
        check_given({"COLOUR": "red"})
    with pytest.raises(SettingsError, match="Did you mean LEDGER_FILE"):
        check_given({"LEDGER_FIL": "a"})
    with pytest.raises(SettingsError, match="IMAGE_COUNT=9 must be at most 8"):
        check_given({"IMAGE_COUNT": "9"})


def test_empty_values_count_as_unset(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text("MODEL_CHECKPOINT_DIR=\nMODEL_MAX_BATCH_SIZE=\n")
    settings = Settings.read(folder=tmp_path)
    assert settings.model_checkpoint_dir is None
    assert settings.model_max_batch_size is None


TEXTS = {
    **{"MODEL_DEVICE": "cpu", "HOST": "0.0.0.0"},
    **{"IMAGE_SERVICE_BASE_URL": "http://a.example", "ALLOWED_ORIGINS": "http://b.example"},
    **{"LEDGER_URL": "postgresql://db.example/pictures", "LEDGER_SCHEMA": "pictures"},
    "WEBHOOK_URLS": "https://a.example/hook=whsec_" + "QUFB" * 8,
    "GEMINI_BASE_URL": "https://gateway.example/gemini",
}


def a_value_of(variable: str) -> str:
    """Return a legal value of a setting, as a file may have it."""
    field = Settings.model_fields[VARIABLES[variable]]
    choices = [
        choice
        for kind in (field.annotation, *get_args(field.annotation))
        for choice in get_args(kind)
        if isinstance(choice, str)
    ]
    return choices[-1] if choices else TEXTS.get(variable, "1")


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("prefix", ["", "AURA_"])
def test_an_empty_value_in_the_environment_unsets_what_files_and_configs_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    prefix: str,
) -> None:
    line = {variable: a_value_of(variable)}
    (tmp_path / ".env.local").write_text(f"{variable}={a_value_of(variable)}\n")
    assert VARIABLES[variable] in Settings.read(line, tmp_path).model_fields_set
    monkeypatch.setenv(prefix + variable, "")
    settings = Settings.read(line, tmp_path)
    assert settings == Settings()
    assert not settings.model_fields_set
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{prefix}{variable} is empty in the environment, so its value in "
        f"{tmp_path / '.env.local'} does not count"
    )


def test_an_empty_prefixed_name_unsets_what_another_programs_bare_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    with pytest.raises(SettingsError, match="AURA_HOST wins"):
        Settings.read(folder=tmp_path)
    monkeypatch.setenv("AURA_HOST", "")
    assert Settings.read(folder=tmp_path).host == "127.0.0.1"


def test_an_old_name_that_is_empty_leaves_a_value_under_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_COUNT", "")
    monkeypatch.setenv("DEFAULT_IMAGE_COUNT", "5")
    assert Settings.read(folder=tmp_path).default_image_count == 5


def test_an_empty_value_in_a_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MODEL_DETERMINISM=fast\n")
    (tmp_path / ".env.local").write_text("MODEL_DETERMINISM=\nMODEL_PRECISION=\n")
    settings = Settings.read({"MODEL_PRECISION": "bf16"}, tmp_path)
    assert (settings.model_determinism, settings.model_precision) == ("fast", "bf16")
