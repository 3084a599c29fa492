"""A working folder with the shipped serve config, and a machine on which nothing is wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serve_app.doctor.checks import ray_cluster
from serve_app.doctor.run import Probes
from tests.support.machines import SOUND_MACHINE, WITHOUT_GPU
from tests.support.ports import quiet_port
from tests.support.setups import VARIABLES, SetUp

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Work in a folder with nothing but the serve config, and without exported settings."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "serve_config.yaml", work)
    monkeypatch.chdir(work)
    with TemporaryDirectory(dir="/tmp") as short:  # the paths of Ray's sockets are limited
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield work


@pytest.fixture
def port(folder: Path) -> int:
    """Return a free port, which the serve config names."""
    port = quiet_port()
    config = folder / "serve_config.yaml"
    config.write_text(config.read_text().replace("port: 4000", f"port: {port}"))
    return port


@pytest.fixture
def probes() -> Probes:
    """Return a sound machine without a GPU and without Ray; everything else is real."""
    return Probes(
        machine=lambda: SOUND_MACHINE,
        gpus=lambda: WITHOUT_GPU,
        cluster=lambda: ray_cluster.probe({}),
    )


@pytest.fixture
def setup(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    return SetUp(folder, port, monkeypatch)
