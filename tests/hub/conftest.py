"""A hub with SDXL's two names and the demo's files on its shelves, and a bare working folder."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.cli.download import Ask, DownloadOptions, download
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.fake_hub import BASE, REFINER, Hub, Shelf, read, serving, weights

ROOT = Path(__file__).parent.parent.parent
Download = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The working folder is empty but for .env.example, and nothing is exported."""
    for name in (*(field.upper() for field in Settings.model_fields), "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path)


@pytest.fixture(scope="session")
def small() -> dict[Stage, dict[str, bytes]]:
    """The demo's files, with a few bytes for the weights: `inspect` looks at headers alone."""
    return {
        stage: {
            path: weights(4096, path) if path.endswith(".safetensors") else content
            for path, content in read(demo_folder(stage)).items()
        }
        for stage in Stage
    }


@pytest.fixture
def hub(small: dict[Stage, dict[str, bytes]]) -> Iterator[Hub]:
    with serving() as hub:
        hub.shelves[BASE] = Shelf(dict(small[Stage.BASE]))
        hub.shelves[REFINER] = Shelf(dict(small[Stage.REFINER]))
        yield hub


@pytest.fixture
def run(hub: Hub, capsys: pytest.CaptureFixture[str]) -> Download:
    """The command in this process: its exit status, and what it said on one long line."""

    def run(
        what: str = "sdxl",
        *,
        accept_license: bool = True,
        revision: str | None = None,
        folder: Path = Path("models"),
        ask: Ask | None = None,
        address: str | None = None,
        free: int | None = None,
    ) -> tuple[int, str]:
        wish = DownloadOptions(what, folder, revision, accept_license)
        status = download(wish, ask=ask, address=address or hub.address, free=free)
        return status, capsys.readouterr().err

    return run
