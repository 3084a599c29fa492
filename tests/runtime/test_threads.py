"""Strict mode on processors with any number of cores, whose threads split a batch differently."""

from collections.abc import Iterator

import pytest
import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.invariance import examine
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device, open_device


@pytest.fixture(params=[1, 2, 3, 4, 8])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A CPU that computes with so many threads, whether it has as many cores or not."""
    threads = torch.get_num_threads()
    yield open_device("cpu", precision="fp32", xformers=False, cpu_threads=request.param)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("images", [1, 2, 4])
def test_strict_mode_can_be_kept_and_a_lone_image_needs_no_padding(
    checkpoints: dict[Stage, Checkpoint], device: Device, stage: Stage, images: int
) -> None:
    model = build_stage_model(checkpoints[stage], device, images=images, strict=True)
    assert model.batch_size.images == images
    assert model.batch_size.lanes(2) == 2


@pytest.mark.parametrize(
    "size", [(104, 152), (256, 256), pytest.param((264, 264), marks=pytest.mark.long)], ids=str
)
def test_every_number_of_rows_keeps_a_row_s_bits_at_sizes_with_uneven_splits(
    checkpoints: dict[Stage, Checkpoint], device: Device, size: tuple[int, int]
) -> None:
    (found,) = examine(checkpoints[Stage.BASE], device, images=2, sizes=[size])
    assert found.kept == found.counts == (1, 2)
