import math
from pathlib import Path

import pytest

from serve_app.bench.gpu.unet import (
    CHANNELS_LAST,
    EAGER,
    FUSED_QKV,
    KEPT,
    flops_per_row,
    step_times,
)
from serve_app.bench.random_checkpoint import write_configs
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.memory.device import open_device
from tests.support.tiny_checkpoints import tiny_checkpoint


@pytest.mark.long
@pytest.mark.parametrize(("side", "tflop"), [(512, 1.59), (1024, 6.76)])
def test_a_row_of_sdxl_is_counted_as_published(side: int, tflop: float, tmp_path: Path) -> None:
    demo = inspect(demo_folder(Stage.BASE), Stage.BASE)
    write_configs(tmp_path / "full")
    full = Checkpoint(Stage.BASE, tmp_path / "full", "full", demo.scheduler, 1024, False, True)
    assert flops_per_row(full, side) / 1e12 == pytest.approx(tflop, rel=0.01)


@pytest.mark.long
def test_step_times_name_every_option_size_and_number_of_rows(tmp_path: Path) -> None:
    tiny = inspect(tiny_checkpoint(tmp_path / "tiny"), Stage.BASE)
    device = open_device("cpu", precision="bf16", xformers=False, cpu_threads=1)
    options = (EAGER, FUSED_QKV, KEPT, CHANNELS_LAST)
    found = list(step_times(tiny, device, "bf16", (64, 128), (1, 2), options, runs=1))
    assert [(time.option, time.side, time.rows) for time in found] == [
        (option, side, rows) for option in options for side in (64, 128) for rows in (1, 2)
    ]
    for time in found:
        assert time.seconds is not None
        work = time.rows * flops_per_row(tiny, time.side)
        assert math.isclose(time.tflops * time.seconds * 1e12, work)
