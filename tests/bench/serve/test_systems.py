"""What every system is started with, and what happens where one can't be."""

import os
from pathlib import Path

import pytest

from serve_app.bench.serve.systems.litserve_environment import LitServeUnavailable, litserve_python
from serve_app.bench.serve.systems.server_arguments import ServerArguments
from serve_app.bench.serve.systems.server_process import ServerProcess
from serve_app.bench.serve.systems.setup import Setup
from tests.support.waiting import until


def test_a_program_reads_the_arguments_that_it_is_started_with() -> None:
    arguments = ServerArguments(4000, "/models/demo", 1, 8, {"ink": "/loras/ink.safetensors"})
    assert ServerArguments.parse(arguments.to_list()) == arguments


@pytest.mark.long
def test_an_environment_that_cannot_be_made_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LitServeUnavailable, match="No matching distribution"):
        litserve_python()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_leaves_no_worker_behind(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    server = ServerProcess("stubborn", "", "tests.support.stubborn_server", setup)
    with server.start():
        worker = int((tmp_path / "stubborn_server.log").read_text().split()[0])
        assert is_running(worker)
    until(lambda: not is_running(worker))
