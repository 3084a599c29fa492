"""The folder of the spool: who may read it, what it holds at most, and who works at what."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.core.errors import SettingsError
from serve_app.spool.folder import MAX_AGE_S, SpoolFolder, SpoolFull
from serve_app.spool.format import encode
from serve_app.spool.spooled_job import SpooledJob
from tests.support.spooled_jobs import spooled_job

A, B, C = "a" * 32, "b" * 32, "c" * 32
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    opened = SpoolFolder(tmp_path / "state" / "spool")
    opened.open()
    return opened


def file_of(folder: SpoolFolder, id: str = A) -> Path:
    return folder.path / f"{id}.safetensors"


def write(folder: SpoolFolder, job: SpooledJob) -> tuple[str, ...]:
    """Leave a job in the folder, as a process that ends; return the ids that made room for it."""
    file, dropped = folder.write(job)
    file.release()
    return dropped


def set_age(folder: SpoolFolder, id: str, seconds: float) -> None:
    written = file_of(folder, id).stat().st_mtime - seconds
    os.utime(file_of(folder, id), (written, written))


def names(folder: SpoolFolder) -> list[str]:
    return sorted(file.name for file in folder.path.iterdir())


def test_folder_and_files_are_for_their_owner_alone(folder: SpoolFolder) -> None:
    write(folder, spooled_job())
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert file_of(folder).stat().st_mode & 0o777 == 0o600
    assert names(folder) == [f"{A}.safetensors"]


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_others_may_enter_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(SettingsError, match=f"DRAIN_SPOOL={tmp_path} is open to other users"):
        SpoolFolder(tmp_path).open()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "spool"
    file.touch()
    with pytest.raises(SettingsError, match=f"DRAIN_SPOOL={file} can't be used: File exists"):
        SpoolFolder(file).open()


def test_a_taken_job_is_the_one_that_was_written_and_gone_when_it_is_deleted(
    folder: SpoolFolder,
) -> None:
    write(folder, spooled_job())
    taken = folder.take(A)
    assert taken is not None
    file, job = taken
    assert job.claim == spooled_job().claim
    file.delete()
    assert (folder.take(A), folder.ids()) == (None, [])


def test_a_released_job_is_there_for_the_next(folder: SpoolFolder) -> None:
    write(folder, spooled_job())
    taken = folder.take(A)
    assert taken is not None
    assert folder.take(A) is None  # while somebody has it
    taken[0].release()
    assert folder.take(A) is not None


def test_a_written_job_is_nobody_else_s_until_it_is_released(folder: SpoolFolder) -> None:
    file, _ = folder.write(spooled_job())
    assert folder.take(A) is None
    again, _ = folder.write(spooled_job())
    file.release()  # that of before
    assert folder.take(A) is None
    again.release()
    assert folder.take(A) is not None


def test_a_locked_file_is_not_read(folder: SpoolFolder) -> None:
    file, _ = folder.write(spooled_job())
    file_of(folder, A).write_bytes(b"x" * 500)
    assert folder.take(A) is None
    assert folder.ids() == [A]  # or else it would have been set aside
    file.release()


def test_a_file_that_was_written_anew_outlives_the_deletion_of_the_old_one(
    folder: SpoolFolder,
) -> None:
    write(folder, spooled_job())
    taken = folder.take(A)
    assert taken is not None
    write(folder, spooled_job())  # by another stop, in the middle of the job
    taken[0].delete()
    assert folder.take(A) is not None


_HOLDER = """
import sys, time
from pathlib import Path
from serve_app.spool.folder import SpoolFolder
taken = SpoolFolder(Path(sys.argv[1])).take(sys.argv[2])
print("taken" if taken else "none", flush=True)
sys.stdin.read()
"""


def test_of_two_processes_one_has_a_job_and_the_other_when_that_one_dies(
    folder: SpoolFolder,
) -> None:
    write(folder, spooled_job())
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder.path), A],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        assert folder.take(A) is None
        assert folder.ids() == [A]
        other.kill()
        other.wait()
        assert folder.take(A) is not None


def make_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def make_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda file: file.write_bytes(file.read_bytes()[:-9]), "is damaged"),
    "foreign": (lambda file: file.write_bytes(b"x" * 500), "is damaged, or no safetensors file"),
    "readable": (lambda file: file.chmod(0o640), r"is open to other users \(mode 0640\)"),
    "a link": (make_link, "is open to other users|can't be opened"),
    "a fifo": (make_fifo, "is no plain file"),
    "of another job": (
        lambda file: file.write_bytes(encode(spooled_job(B))),
        "has another name than its job",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_can_not_be_used_is_set_aside_and_named_with_the_reason(
    folder: SpoolFolder, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    act, reason = UNUSABLE[name]
    write(folder, spooled_job())
    act(file_of(folder))
    assert folder.take(A) is None
    assert folder.ids() == []
    assert f"{A}.safetensors.refused" in names(folder)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(str(file_of(folder)))
    assert message.endswith(f"it is now {A}.safetensors.refused")
    assert [part for part in reason.split("|") if part.replace("\\", "") in message]


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away")
def test_another_user_s_file_and_folder_are_refused(
    folder: SpoolFolder, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, spooled_job())
    os.chown(file_of(folder), 12345, -1)
    assert folder.take(A) is None
    assert "belongs to another user (uid 12345)" in caplog.text
    os.chown(folder.path, 12345, -1)
    with pytest.raises(SettingsError, match="belongs to another user"):
        folder.open()


def test_files_of_other_names_are_left_alone(folder: SpoolFolder) -> None:
    for name in ("model.safetensors", "notes.txt", f"{A}.pt"):
        (folder.path / name).write_bytes(b"x")
    write(folder, spooled_job(B))
    assert folder.ids() == [B]
    assert len(names(folder)) == 4


def test_the_oldest_jobs_make_room_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(encode(spooled_job(A, side=64)))
    folder = SpoolFolder(tmp_path / "spool", max_bytes=int(2.5 * size))
    folder.open()
    for age, id in ((30, A), (20, B)):
        assert write(folder, spooled_job(id, side=64)) == ()
        set_age(folder, id, age)
    assert write(folder, spooled_job(C, side=64)) == (A,)
    assert folder.ids() == [B, C]
    assert f"{A}.safetensors had to make room, and is deleted" in caplog.text


def test_what_was_set_aside_makes_room_before_any_job(tmp_path: Path) -> None:
    size = len(encode(spooled_job(A, side=64)))
    folder = SpoolFolder(tmp_path / "spool", max_bytes=int(2.5 * size))
    folder.open()
    for id in (A, B):
        write(folder, spooled_job(id, side=64))
    file_of(folder, B).chmod(0o644)
    assert folder.take(B) is None
    assert write(folder, spooled_job(C, side=64)) == ()
    assert names(folder) == [f"{A}.safetensors", f"{C}.safetensors"]


def test_a_copy_gets_no_room_but_that_of_its_own_file_and_of_what_was_set_aside(
    tmp_path: Path,
) -> None:
    size = len(encode(spooled_job(A, side=64)))
    folder = SpoolFolder(tmp_path / "spool", max_bytes=int(2.5 * size))
    folder.open()
    for id in (A, B):
        write(folder, spooled_job(id, side=64))
    with pytest.raises(SpoolFull):
        folder.write(spooled_job(C, side=64), makes_room=False)
    folder.write(spooled_job(B, side=64), makes_room=False)
    file_of(folder, A).chmod(0o644)
    assert folder.take(A) is None
    folder.write(spooled_job(C, side=64), makes_room=False)
    assert names(folder) == [f"{B}.safetensors", f"{C}.safetensors"]


def test_what_can_not_be_deleted_makes_no_room(tmp_path: Path) -> None:
    size = len(encode(spooled_job(A, side=64)))
    folder = SpoolFolder(tmp_path / "spool")
    folder.open()
    file_of(folder, C).mkdir()
    os.utime(file_of(folder, C), (1, 1))
    write(folder, spooled_job(A, side=64))
    full = SpoolFolder(folder.path, max_bytes=2 * size + file_of(folder, C).stat().st_size - 1)
    assert write(full, spooled_job(B, side=64)) == (A,)
    assert names(folder) == [f"{B}.safetensors", f"{C}.safetensors"]


def test_a_job_that_is_too_large_alone_is_not_kept(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path / "spool", max_bytes=1000)
    folder.open()
    with pytest.raises(SpoolFull):
        write(folder, spooled_job())
    assert names(folder) == []


def test_what_is_too_old_is_dropped_by_name(
    folder: SpoolFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for id in (A, B):
        write(folder, spooled_job(id))
    set_age(folder, A, MAX_AGE_S + 60)
    assert folder.ids() == [B]
    assert names(folder) == [f"{B}.safetensors"]
    assert f"{A}.safetensors is too old, and is deleted" in caplog.text


def test_what_a_dead_process_had_not_finished_writing_is_removed_after_a_while(
    folder: SpoolFolder,
) -> None:
    part = folder.path / f".{A}.x7_k.part"
    part.touch()
    assert folder.ids() == []
    assert part.exists()  # it may be in the making
    os.utime(part, (1, 1))
    folder.ids()
    assert not part.exists()


def set_aside(folder: SpoolFolder, id: str) -> Path:
    """Write a job's file and spoil it, so that the folder sets it aside; return where it is."""
    write(folder, spooled_job(id))
    file_of(folder, id).write_bytes(b"x" * 500)
    set_age(folder, id, MAX_AGE_S + 60)
    assert folder.take(id) is None
    return folder.path / f"{id}.safetensors.refused"


def test_what_was_set_aside_is_kept_as_long_as_a_job_from_then_on(folder: SpoolFolder) -> None:
    refused = set_aside(folder, A)
    folder.ids()
    assert refused.exists()  # however old the file itself is
    later = SpoolFolder(folder.path, clock=lambda: time.time() + MAX_AGE_S + 60)
    assert later.ids() == []
    assert names(folder) == []


def test_what_is_set_aside_takes_no_more_room_than_jobs_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SpoolFolder(tmp_path / "spool", max_bytes=3 * len(encode(spooled_job(A))))
    folder.open()
    write(folder, spooled_job(B))
    foreign = file_of(folder, A)
    foreign.write_bytes(bytes(4 * len(encode(spooled_job(A)))))
    foreign.chmod(0o600)
    assert folder.take(A) is None
    assert folder.ids() == [B]
    assert names(folder) == [f"{B}.safetensors"]
    assert "had to make room, and is deleted" in caplog.text


def test_what_can_not_be_deleted_is_not_called_deleted(
    folder: SpoolFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(folder, A).mkdir()
    os.utime(file_of(folder, A), (1, 1))
    folder.ids()
    assert file_of(folder, A).exists()
    assert "is deleted" not in caplog.text
