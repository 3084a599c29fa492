"""What `aura bench step-options` compares, on a few steps of the demo."""

import pytest

from serve_app.bench.step_options import OPTIONS, BytesCheck, check_bytes
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect


def test_images_that_differ_are_counted() -> None:
    check = BytesCheck()
    check.count(b"a", b"a")
    assert str(check) == "1 of 1 equal"
    check.count(b"b", b"a")
    assert str(check) == "1 of 2 differ"


@pytest.mark.long
@pytest.mark.parametrize("label", OPTIONS)
def test_bytes_are_compared_in_company_and_from_every_snapshot(label: str) -> None:
    base = inspect(demo_folder(Stage.BASE), Stage.BASE)
    check = check_bytes(base, OPTIONS[label], threads=1, steps=5, samplers=[Sampler.EULER])
    assert check.different == 0
    assert check.compared == (3 if "deepcache" in label or label == "both" else 6)
