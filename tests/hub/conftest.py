"""A fake hub that has SDXL's two repositories with the demo's files, and an empty folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.cli.download import Ask, DownloadOptions, download
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from tests.support.fake_hub import (
    BASE,
    REFINER,
    ROOT,
    FakeHub,
    FakeRepo,
    RunDownload,
    fake_hub,
    read_files,
)
from tests.support.tiny_checkpoints import tiny_checkpoint


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Work in a folder with nothing but .env.example, and without exported settings."""
    for name in (*(field.upper() for field in Settings.model_fields), "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, dict[str, bytes]]:
    """Return the files of a small checkpoint of each stage."""
    folder = tmp_path_factory.mktemp("small")
    return {stage: read_files(tiny_checkpoint(folder / stage, stage)) for stage in Stage}


@pytest.fixture
def hub(small_files: dict[Stage, dict[str, bytes]]) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos[BASE] = FakeRepo(dict(small_files[Stage.BASE]))
        hub.repos[REFINER] = FakeRepo(dict(small_files[Stage.REFINER]))
        yield hub


@pytest.fixture
def run(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> RunDownload:
    def run(
        what: str = "sdxl",
        *,
        accept_license: bool = True,
        revision: str | None = None,
        folder: Path = Path("models"),
        ask: Ask | None = None,
        endpoint: str | None = None,
        free: int | None = None,
    ) -> tuple[int, str]:
        options = DownloadOptions(what, folder, revision, accept_license)
        status = download(options, ask=ask, endpoint=endpoint or hub.address, free=free)
        return status, capsys.readouterr().err

    return run
