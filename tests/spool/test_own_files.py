"""The files of a process's own jobs: locked while they go on, and the newest one counts."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.service.tasks import ImageSnapshot
from serve_app.spool.folder import SpoolFolder
from serve_app.spool.own_files import OwnFiles
from serve_app.spool.spooled_job import SpooledJob
from tests.support.spooled_jobs import spooled_job

A = "a" * 32


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


@pytest.fixture
def files(folder: SpoolFolder) -> OwnFiles:
    return OwnFiles(folder)


def further(job: SpooledJob) -> SpooledJob:
    """Return the job a step later."""
    done, halfway, waiting = job.images
    assert halfway is not None
    sample = replace(halfway.sample, index=halfway.sample.index + 1)
    return replace(job, images=(done, ImageSnapshot(sample, None, halfway.suspicion), waiting))


def test_a_written_job_is_locked_until_it_is_released(folder: SpoolFolder, files: OwnFiles) -> None:
    files.write(spooled_job(), makes_room=False)
    files.write(further(spooled_job()), makes_room=False)
    assert files.ids == {A}
    assert folder.take(A) is None
    files.release(A)
    assert files.ids == frozenset()
    taken = folder.take(A)
    assert taken is not None
    snapshot = taken[1].images[1]
    assert snapshot is not None
    assert snapshot.sample.index == 16


def test_a_job_that_has_ended_leaves_no_file(folder: SpoolFolder, files: OwnFiles) -> None:
    for job in (spooled_job(), further(spooled_job())):
        files.write(job, makes_room=True)
    files.delete(A)
    files.delete(A)
    assert folder.ids() == []


def test_a_job_is_written_again_if_it_is_further_or_its_file_is_gone(
    folder: SpoolFolder, files: OwnFiles
) -> None:
    inodes = []
    for job in (spooled_job(), spooled_job(), further(spooled_job())):
        files.write(job, makes_room=False)
        inodes.append((folder.path / f"{A}.safetensors").stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2]
    (folder.path / f"{A}.safetensors").unlink()
    files.write(further(spooled_job()), makes_room=False)
    assert folder.ids() == [A]


def test_of_two_that_were_written_at_once_the_one_in_place_is_kept_with_its_lock(
    folder: SpoolFolder, files: OwnFiles
) -> None:
    first, _ = folder.write(spooled_job())
    second, _ = folder.write(further(spooled_job()))
    files.add(A, second)
    files.add(A, first)  # its thread comes late
    assert (first.descriptor, folder.take(A)) == (None, None)
    files.release(A, first)
    assert files.ids == {A}
    files.release(A, second)
    assert folder.take(A) is not None
