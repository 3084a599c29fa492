"""What every room's tests may stand on: the demo checkpoint, which ships with the package."""

import gc
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect

# huggingface_hub reads these at import: no test speaks to the real hub, or with anybody's token.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN_PATH": os.devnull}
# OpenMP reads this, in replicas too: a thread that waits sleeps. One that spins beside a busy core
# keeps it from whomever it waits for: a network on two threads was 30 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hypothesis fails an example that takes 0.2 s; how long one takes says nothing on a busy machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_ROOMS_WITH_NETWORKS = ("demo", "extensions", "ingress", "regression", "runtime")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test read what an earlier run has proved, or leave files in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoints() -> dict[Stage, Checkpoint]:
    """The demo, inspected."""
    return {stage: inspect(demo_folder(stage), stage) for stage in Stage}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the rooms with the longest files first.

    Processes that take one file after the other then end at about the same time.
    """
    folder = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(folder).parts[0] not in _ROOMS_WITH_NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What collecting the tests and earlier modules have left stays to the end: each of the many
    searches for rings that tests ask for, by `Device.free` above all, would look through it for a
    second or two."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    """Of several tests with one name, tests in several processes would run one and not say so."""
    twice = [id for id, times in Counter(ids).items() if times > 1]
    if twice:
        raise pytest.UsageError(f"-n would run but one test of each name: {', '.join(twice)}")
