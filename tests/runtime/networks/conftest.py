"""Text encoders of the demo, and torch without gradients."""

from collections.abc import Iterator

import pytest
import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.text_encoders import ClipTextEncoders


@pytest.fixture(scope="module")
def text_encoders(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> dict[Stage, ClipTextEncoders]:
    return {stage: load(checkpoint, cpu).text_encoders for stage, checkpoint in checkpoints.items()}


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
