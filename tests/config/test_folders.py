"""The folders of Ray and of the ledger: what is wrong with them is one line before Ray starts."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serve_app.config.folders import (
    check_folders,
    home,
    nearest_existing,
    ray_folder,
    ray_problems,
    space_problem,
    spool_problem,
    started_cluster,
    write_problem,
)
from serve_app.core.errors import SettingsError
from serve_app.core.service.ledger_place import LedgerFile

PRESENT_TOKEN = {"RAY_AUTH_TOKEN": "t"}
IS_ROOT = os.geteuid() == 0  # for whom every folder is writable


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder whose path is short enough for sockets."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def problem_of(environ: dict[str, str], ledger: Path = Path("/tmp/ledger.sqlite")) -> str:
    """Return the first problem, as `up` prints it."""
    with pytest.raises(SettingsError) as refused:
        check_folders(LedgerFile(ledger), environ)
    return str(refused.value)


def test_folders_that_can_be_written_are_no_problem(short: Path) -> None:
    check_folders(
        LedgerFile(short / "new" / "ledger.sqlite"), {"RAY_TMPDIR": str(short), "HOME": str(short)}
    )
    check_folders(
        LedgerFile(short / "l"), {"RAY_TMPDIR": str(short / "made" / "by"), **PRESENT_TOKEN}
    )


def test_ray_writes_where_its_variables_say() -> None:
    assert ray_folder({}) == Path("/tmp")
    assert ray_folder({"RAY_TMPDIR": "/a", "TMPDIR": "/b"}) == Path("/a")
    assert ray_folder({"TMPDIR": "/b"}) == Path("/b")


def test_a_path_too_long_for_ray_s_sockets_is_refused_with_its_length(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 94)
    message = problem_of({"RAY_TMPDIR": str(folder), **PRESENT_TOKEN})
    assert message == (
        f"RAY_TMPDIR={folder} has {len(str(folder))} bytes, and the paths of Ray's sockets leave "
        "room for 39. Choose a shorter one: RAY_TMPDIR=/tmp aura up"
    )
    assert problem_of({"TMPDIR": str(folder), **PRESENT_TOKEN}).startswith(f"TMPDIR={folder} has ")

    def is_too_long(folder: str) -> bool:
        problems = ray_problems({"RAY_TMPDIR": folder, **PRESENT_TOKEN})
        return any("bytes, and the paths" in str(problem) for problem in problems)

    assert is_too_long("/" + "x" * 39)
    assert not is_too_long("/" + "x" * 38)


def test_a_folder_that_is_a_file_is_refused(short: Path) -> None:
    file = short / "file"
    file.touch()
    message = problem_of({"RAY_TMPDIR": str(file), **PRESENT_TOKEN})
    assert message.startswith(f"RAY_TMPDIR={file} can't be used for Ray's files: {file} is not a")
    message = problem_of({"RAY_TMPDIR": str(file / "below"), **PRESENT_TOKEN})
    assert f"can't be used for Ray's files: {file} is not a folder" in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder closed even to root")
def test_a_folder_in_which_nothing_can_be_made_is_refused() -> None:
    assert problem_of({"RAY_TMPDIR": "/proc/self", **PRESENT_TOKEN}).startswith(
        "RAY_TMPDIR=/proc/self can't be used for Ray's files: /proc/self is not writable ("
    )
    assert problem_of({"RAY_TMPDIR": "/tmp", "HOME": "/proc/self"}).startswith(
        "HOME=/proc/self can't be used for Ray's token (/proc/self/.ray/auth_token): /proc/self is "
    )
    assert problem_of(
        {"RAY_TMPDIR": "/tmp", **PRESENT_TOKEN}, Path("/proc/self/l/l.db")
    ).startswith("LEDGER_FILE=/proc/self/l/l.db can't be written: /proc/self is not writable (")


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(short: Path) -> None:
    short.chmod(0o500)
    assert "is not writable (Permission denied)" in str(write_problem(short))


@pytest.mark.parametrize(
    "environ",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "t"},
        {"RAY_AUTH_TOKEN_PATH": "/run/secrets/ray"},
    ],
)
def test_without_a_token_to_make_the_home_folder_need_not_be_writable(
    environ: dict[str, str],
) -> None:
    assert list(ray_problems({"RAY_TMPDIR": "/tmp", "HOME": "/proc/self", **environ})) == []


@pytest.mark.parametrize(
    ("free", "shared", "sentence"),
    [
        (
            255,
            4096,
            "RAY_TMPDIR=/r has 255 MiB free, and Ray needs 256 MiB for its files. Make room",
        ),
        (256, 75, ""),
        (330, 74, "/dev/shm has 74 MiB free, and Ray needs 75 MiB for what its processes share. D"),
        (331, 0, ""),  # the folder has room for what is shared
    ],
)
def test_a_full_disk_is_refused_with_what_is_free(free: int, shared: int, sentence: str) -> None:
    problem = space_problem("RAY_TMPDIR", Path("/r"), free << 20, shared << 20)
    assert str(problem or "").startswith(sentence)
    assert (problem is None) == (sentence == "")


def test_without_home_it_is_that_of_the_user() -> None:
    assert home({"HOME": "/a"}) == Path("/a")
    assert home({}).is_absolute()


def test_a_ledger_that_is_a_folder_is_refused(short: Path) -> None:
    message = problem_of({"RAY_TMPDIR": str(short), **PRESENT_TOKEN}, short)
    assert message.startswith(f"LEDGER_FILE={short} is a folder, and must be a file")


def test_the_cluster_that_ray_start_wrote_down(short: Path) -> None:
    environ = {"RAY_TMPDIR": str(short)}
    assert started_cluster(environ) == ""
    (short / "ray").mkdir()
    (short / "ray" / "ray_current_cluster").write_text("192.0.2.7:6379\n")
    assert started_cluster(environ) == "192.0.2.7:6379"


def test_a_name_too_long_for_the_file_system_is_refused(short: Path) -> None:
    name = "x" * 300
    message = problem_of(PRESENT_TOKEN, short / name / "ledger.sqlite")
    assert "LEDGER_FILE" in message
    assert "File name too long" in message
    assert "File name too long" in problem_of({"HOME": str(short / name)})
    assert nearest_existing(short / name) == short


@pytest.mark.skipif(IS_ROOT, reason="root may look into every folder")
def test_a_folder_below_one_that_is_closed_is_refused(short: Path) -> None:
    closed = short / "closed"
    closed.mkdir(mode=0)
    assert "Permission denied" in problem_of(PRESENT_TOKEN, closed / "a" / "ledger.sqlite")
    assert "Permission denied" in problem_of({"HOME": str(closed / "a")})
    assert nearest_existing(closed / "a" / "b") == closed


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (0o755, " is open to other users (mode 0755). Set DRAIN_SPOOL to a folder of your own"),
        (None, " is not a folder. Set DRAIN_SPOOL"),
    ],
)
def test_a_spool_that_others_may_read_is_refused_by_name(
    short: Path, mode: int | None, sentence: str
) -> None:
    spool = short / "spool"
    if mode is None:
        spool.touch()
    else:
        spool.mkdir()
        spool.chmod(mode)
    environ = {"RAY_TMPDIR": str(short), **PRESENT_TOKEN}
    with pytest.raises(SettingsError) as refused:
        check_folders(LedgerFile(None), environ, spool=spool)
    assert str(refused.value).startswith(f"DRAIN_SPOOL={spool}{sentence}")


def test_a_spool_that_is_private_or_not_there_yet_is_no_problem(short: Path) -> None:
    private = short / "spool"
    private.mkdir(mode=0o700)
    for spool in (private, short / "not" / "yet"):
        assert spool_problem(spool) is None
    assert not (short / "not").exists()
