"""A working folder of its own with the shipped config, and a machine on which nothing is wrong."""

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.doctor.checks import ray_cluster as cluster
from serve_app.doctor.checks.gpu_probe import GpuReport, Torch
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.run import Probes, run
from tests.support.setups import OURS, SetUp

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
SOUND = Machine(
    python=(3, 11, 9),
    isolated=True,
    system="Linux",
    release="6.8.0-45-generic",
    architecture="x86_64",
    distribution="",
    lacking=(),
    memory=32 * GIB,
    now=1_800_000_000.0,  # 2027-01-15 08:00 UTC
    newest=1_790_000_000.0,
    synchronised=True,
)
WITHOUT_CARD = GpuReport(
    torch=Torch("2.13.0", "12.8", (), mps=False, cards=()),
    problem="",
    driver=None,
    nvidia=False,
    visible=None,
)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder: nothing is exported but a free port and a place for the ledger."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    here = tmp_path / "work"
    here.mkdir()
    shutil.copy(ROOT / "serve_config.yaml", here)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def port(folder: Path) -> int:
    """A free port, which the config names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "serve_config.yaml"
    config.write_text(config.read_text().replace("port: 4000", f"port: {port}"))
    return port


@pytest.fixture
def grounds() -> Probes:
    """A sound machine without a GPU, on which Ray's usual ports are nobody's; the rest is real."""
    return Probes(
        machine=lambda: SOUND, graphics=lambda: WITHOUT_CARD, cluster=lambda: cluster.probe({})
    )


@pytest.fixture
def setup(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    return SetUp(folder, port, monkeypatch)


def machine(**changes: Any) -> Machine:
    """The sound machine, but for this."""
    return replace(SOUND, **changes)


def wrong(grounds: Probes) -> list[tuple[str, str, str, str]]:
    """All that the examination finds wrong, in words."""
    findings = [one for section in run(grounds) for one in section.findings]
    return [(f.check, f.verdict.value, f.message, f.fix) for f in findings if f.fix]
