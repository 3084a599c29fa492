"""What every room's tests may stand on: the stand-in checkpoint, built once a session."""

from pathlib import Path

import pytest

from serve_app.core.spec import Stage
from serve_app.runtime.checkpoint import Checkpoint, inspect


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the stand-in checkpoint."""
    from serve_app.runtime.standin import ensure_standin

    folder = tmp_path_factory.mktemp("cache")
    ensure_standin(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(cache: Path) -> dict[Stage, Checkpoint]:
    """The stand-in, inspected."""
    from serve_app.runtime.standin import ensure_standin

    base, refiner = ensure_standin(cache)
    return {
        Stage.BASE: inspect(base, Stage.BASE),
        Stage.REFINER: inspect(refiner, Stage.REFINER),
    }
