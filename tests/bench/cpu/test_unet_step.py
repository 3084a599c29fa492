from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.bench.cpu.unet_step import VARIANTS, Variant, measure
from tests.support.tiny_checkpoints import tiny_checkpoint

EAGER = [variant for variant in VARIANTS if not (variant.compiled or variant.openvino)]
COMPILED = [variant for variant in VARIANTS if variant not in EAGER]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("bench") / "tiny")


def test_every_eager_way_gives_the_same_result_and_a_time_of_each_run(tiny: Path) -> None:
    first = measure(EAGER[0], tiny, 64, (1, 2), 2, 1)
    assert first.denoised.shape == (4, 8, 8)
    for variant in EAGER:
        times = measure(variant, tiny, 64, (1, 2), 2, 1)
        assert {rows: len(seconds) for rows, seconds in times.seconds.items()} == {1: 2, 2: 2}
        assert np.abs(times.denoised - first.denoised).max() < 0.05


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.filterwarnings("ignore:Converting a tensor")  # OpenVINO traces
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")  # in diffusers
@pytest.mark.parametrize("variant", COMPILED, ids=lambda variant: variant.label)
def test_every_compiled_way_gives_the_result_of_the_eager_one(tiny: Path, variant: Variant) -> None:
    if variant.openvino:
        pytest.importorskip("openvino")
    eager = measure(replace(EAGER[0], precision=variant.precision), tiny, 64, (1,), 1, 1)
    times = measure(variant, tiny, 64, (1,), 1, 1)
    assert np.abs(times.denoised - eager.denoised).max() < 0.05
