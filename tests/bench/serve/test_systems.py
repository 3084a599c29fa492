"""What every system is started with, and what happens where one can't be."""

from pathlib import Path

import pytest

from serve_app.bench.serve.systems.litserve_environment import LitServeUnavailable, litserve_python
from serve_app.bench.serve.systems.server_arguments import ServerArguments


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
