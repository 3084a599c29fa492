import json
from pathlib import Path

import pytest

from serve_app.bench.gpu.command import Scale, measure
from serve_app.bench.gpu.unet import CHANNELS_LAST, EAGER, FUSED_QKV, KEPT
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder

TOY = Scale(
    demo_folder(Stage.BASE),
    sides=(128, 64),
    rows=(1, 2),
    steps=2,
    images=2,
    runs=1,
    matmul_side=64,
    cpu_threads=2,
    options=(EAGER, FUSED_QKV, KEPT, CHANNELS_LAST),
)


@pytest.mark.long
def test_every_part_runs_at_toy_size_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = measure(TOY, device="cpu", minutes=10, output=tmp_path / "gpu.png")
    assert not results.skipped
    assert set(results.ceilings) == {"bf16", "fp16"}
    assert {(found.option, found.side) for found in results.steps if found.precision == "bf16"} == {
        (EAGER, 128),
        (KEPT, 128),
        (KEPT, 64),
        (CHANNELS_LAST, 128),
        (FUSED_QKV, 128),
    }
    strict = [found for found in results.images if found.mode == "strict"]
    assert [found.images for found in strict] == [1, 2]
    assert all(found.equals_alone for found in strict)
    assert set(results.vae) == {"bf16", "fp32"}
    assert [len(rung.savings) for rung in results.rungs] == [0, 1, 2]
    assert len(results.swaps) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert len(written["steps"]) == len(results.steps)
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    assert "TFLOP/s" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_named_and_the_rest_is_written(tmp_path: Path) -> None:
    results = measure(TOY, device="cpu", minutes=0, output=tmp_path / "gpu.png")
    assert "ceilings" in results.skipped
    assert "loading and swap" in results.skipped
    assert json.loads((tmp_path / "gpu.json").read_text())["skipped"] == results.skipped
