"""The file of secrets: for its owner alone, and for no longer than its `aura up` runs."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.config.secret_file import (
    VARIABLE,
    delete_secret_file,
    read_secret_file,
    secret_file,
    take_secrets,
)
from serve_app.config.settings import VARIABLES, Settings, is_secret
from serve_app.core.errors import SettingsError

KEY = "AIza-canary-of-the-settings"
SECRETS = {"AURA_GEMINI_API_KEY": KEY, "API_KEYS": "a,b"}
HOLDER = """
import sys
from pathlib import Path
from serve_app.config.secret_file import secret_file
with secret_file({"API_KEYS": "a"}, Path(sys.argv[1])) as variables:
    print(*variables.values(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"AURA_{name}", raising=False)


@contextmanager
def holder(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Run a process that lends secrets until its input ends; yield it and its file."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def file_of(variables: Mapping[str, str]) -> Path:
    return Path(variables[VARIABLE])


def test_secrets_leave_the_environment_by_a_file_for_their_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, secrets = take_secrets(
        {"PATH": "/bin", **SECRETS, "LEDGER_URL": "", "BACKEND_PORT": "4001"}, is_secret
    )
    assert left == {"PATH": "/bin", "LEDGER_URL": "", "BACKEND_PORT": "4001"}
    with secret_file(secrets, tmp_path) as variables:
        assert stat.S_IMODE(file_of(variables).stat().st_mode) == 0o600
        monkeypatch.setenv(VARIABLE, variables[VARIABLE])
        settings = Settings.read(folder=tmp_path)
    assert settings.gemini_api_key == SecretStr(KEY)
    assert settings.api_keys == ("a", "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="can't be read: No such file"):
        Settings.read(folder=tmp_path)


def test_without_secrets_there_is_no_file(tmp_path: Path) -> None:
    with secret_file({}, tmp_path) as variables:
        assert variables == {}
        assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), secret_file(SECRETS, tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_process_that_runs_ray_may_delete_the_file_first(tmp_path: Path) -> None:
    with secret_file(SECRETS, tmp_path) as variables:
        delete_secret_file(variables)
        assert list(tmp_path.iterdir()) == []
        delete_secret_file(variables)


def test_the_file_of_a_killed_process_is_deleted_by_the_next_start(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, file):
        process.kill()
        process.wait()
        assert file.exists()
        with secret_file({}, tmp_path):
            assert not file.exists()


def test_the_file_of_a_process_that_lives_is_left_to_it(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, file):
        with secret_file(SECRETS, tmp_path):
            assert read_secret_file({VARIABLE: str(file)}) == {"API_KEYS": "a"}
        assert file.exists()
        process.communicate("")
        assert list(tmp_path.iterdir()) == []


def test_what_only_has_the_name_of_such_a_file_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not ours")
    link = tmp_path / "aura-secrets-link.json"
    link.symlink_to(other)
    folder = tmp_path / "aura-secrets-folder.json"
    folder.mkdir()
    queue = tmp_path / "aura-secrets-queue.json"
    os.mkfifo(queue)
    with secret_file(SECRETS, tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (other, link, folder, queue)
    }
    assert other.read_text() == "not ours"


def test_a_damaged_file_of_secrets_is_refused_without_showing_them(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(KEY)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="it is damaged") as refused:
        read_secret_file({VARIABLE: str(file)})
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o602, 0o604])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secrets"
    file.write_text('{"API_KEYS": "theirs"}')
    file.chmod(mode)
    with pytest.raises(SettingsError, match="not this user's alone"):
        read_secret_file({VARIABLE: str(file)})


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "theirs"
    file.write_text('{"API_KEYS": "theirs"}')
    file.chmod(0o600)
    link = tmp_path / "secrets"
    link.symlink_to(file)
    with pytest.raises(SettingsError, match="can't be read"):
        read_secret_file({VARIABLE: str(link)})
