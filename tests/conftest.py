"""What every room's tests may stand on: the demo checkpoint, which ships with the package."""

import os

import pytest

from serve_app.core.spec import Stage
from serve_app.demo.checkpoints import demo_folder
from serve_app.runtime.checkpoint import Checkpoint, inspect

# huggingface_hub reads these at import: no test speaks to the real hub, or with anybody's token.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN_PATH": os.devnull}


@pytest.fixture(scope="session")
def checkpoints() -> dict[Stage, Checkpoint]:
    """The demo, inspected."""
    return {stage: inspect(demo_folder(stage), stage) for stage in Stage}
