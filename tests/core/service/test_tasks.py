"""When a task must be done."""

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.service.tasks import ImageTask

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=9, guidance=5)


def test_a_deadline_counts_from_the_arrival_of_the_request() -> None:
    assert ImageTask(id="a", spec=SPEC, timeout_s=15, arrived=100.0).deadline(107.0) == 115.0
    assert ImageTask(id="a", spec=SPEC, timeout_s=15).deadline(107.0) == 122.0
    assert ImageTask(id="a", spec=SPEC, arrived=100.0).deadline(107.0) is None
