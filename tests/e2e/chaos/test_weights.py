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


def gpu_seconds(service: ChaosService) -> dict[tuple[Stage, float], float]:
    """Return the seconds that each stage has measured so far, by the caller's weight."""
    seconds = {(stage, weight): 0.0 for stage in Stage for weight in (3.0, 1.0)}
    for stage in Stage:
        for stats in service.stats(stage):
            for caller, measured in stats.engine.seconds_by_caller.items():
                seconds[stage, caller.weight] += measured
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
            own_service(ray_of_its_own, folder, keys=keys, weights=weights, refiner=2)
        )
        other = stack.enter_context(other_ingress(ray_of_its_own, service)) if apart else ""
        load = stack.enter_context(Load(service.address))
        heavy = load.send(
            Call(image_body(i, steps=HEAVY_STEPS), caller=HEAVY, group="heavy") for i in range(140)
        )
        light = load.send(
            Call(
                image_body(1000 + i, steps=LIGHT_STEPS),
                caller=LIGHT,
                group="light",
                route=f"{other}/generate",
            )
            for i in range(36)
        )
        both = [heavy, light]
        until(lambda: all(sum(f.done() for f in some) >= len(some) // 8 for some in both), 120)
        begin = gpu_seconds(service)
        until(lambda: any(sum(f.done() for f in some) >= len(some) * 3 // 4 for some in both), 300)
        end = gpu_seconds(service)
        answers = load.answers()
    seconds = {key: end[key] - begin[key] for key in end}
    heavy_s, light_s = seconds[Stage.BASE, 3.0], seconds[Stage.BASE, 1.0]
    report(
        f"A (weight 3, {HEAVY_STEPS} steps an image) and B (weight 1, {LIGHT_STEPS} steps) both "
        f"send more than there is room for, {'an ingress each' if apart else 'one ingress'}",
        f"GPU-seconds of the base stage, which is full: {heavy_s:.1f} and {light_s:.1f}: "
        f"{heavy_s / light_s:.2f} to 1 (of the refiner, which is not: "
        f"{seconds[Stage.REFINER, 3.0]:.1f} and {seconds[Stage.REFINER, 1.0]:.1f})",
        "3 to 1 within 5 %",
    )
    assert {answer.status for answer in answers} == {201}
    assert heavy_s / light_s == pytest.approx(3, rel=0.05)
