"""Two callers who both want all of the GPUs, with weights of three and one."""

from contextlib import ExitStack

import pytest

from serve_app.core.diffusion.spec import Stage
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, other_ingress, own_service
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long]

HEAVY, LIGHT = "a-key-of-weight-three", "a-key-of-weight-one"
HEAVY_STEPS, LIGHT_STEPS = 10, 30


def gpu_seconds(service: ChaosService) -> dict[float, float]:
    """Return the seconds that the replicas have measured so far, by the caller's weight."""
    seconds = {3.0: 0.0, 1.0: 0.0}
    for stage in Stage:
        for stats in service.stats(stage):
            for caller, measured in stats.engine.seconds_by_caller.items():
                seconds[caller.weight] += measured
    return seconds


@pytest.mark.parametrize("apart", [False, True], ids=["one-ingress", "an-ingress-each"])
def test_weights_of_three_and_one_give_gpu_seconds_of_three_and_one(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory, apart: bool
) -> None:
    """The light caller's images are three times as long as the heavy caller's."""
    folder = tmp_path_factory.mktemp("weights")
    keys = (HEAVY, LIGHT)
    weights = {HEAVY: 3.0, LIGHT: 1.0}
    with ExitStack() as stack:
        service = stack.enter_context(
            own_service(ray_of_its_own, folder, keys=keys, weights=weights, refiner=1)
        )
        other = stack.enter_context(other_ingress(ray_of_its_own, service)) if apart else ""
        load = stack.enter_context(Load(service.address))
        heavy = load.send(
            Call(image_body(i, steps=HEAVY_STEPS), caller=HEAVY, group="heavy") for i in range(200)
        )
        light = load.send(
            Call(
                image_body(1000 + i, steps=LIGHT_STEPS),
                caller=LIGHT,
                group="light",
                route=f"{other}/generate",
            )
            for i in range(40)
        )
        both = [heavy, light]
        until(lambda: all(sum(f.done() for f in some) >= len(some) // 8 for some in both), 120)
        begin = gpu_seconds(service)
        until(lambda: any(sum(f.done() for f in some) >= len(some) * 3 // 4 for some in both), 300)
        end = gpu_seconds(service)
        answers = load.answers()
    seconds = {weight: end[weight] - begin[weight] for weight in (3.0, 1.0)}
    share = seconds[3.0] / seconds[1.0]
    report(
        f"A (weight 3, {HEAVY_STEPS} steps an image) and B (weight 1, {LIGHT_STEPS} steps) both "
        f"send more than there is room for, {'an ingress each' if apart else 'one ingress'}",
        f"GPU-seconds {seconds[3.0]:.1f} and {seconds[1.0]:.1f}: {share:.2f} to 1",
        "3 to 1 within 5 %",
    )
    assert share == pytest.approx(3, rel=0.05)
    assert {answer.status for answer in answers} == {201}
