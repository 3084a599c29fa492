"""What is left of an image, by the costs of its stages."""

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, new_sample, plan_segments
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import WorkKind
from serve_app.core.service.outlook import time_left

SPEC = ImageSpec(prompt="a", seed=0, width=64, height=64, steps=10, guidance=5, handoff=0.8)


def costs(stage: Stage, step: float, decode: float, prompt: float) -> CostTable:
    key = ModelKey(stage)
    return CostTable(
        {
            TurnKind(WorkKind.STEP, key, 64, 64, 2): step,
            TurnKind(WorkKind.DECODE, key, 64, 64): decode,
            TurnKind(WorkKind.CONDITION, key, rows=2): prompt,
        }
    )


COSTS = {
    Stage.BASE: costs(Stage.BASE, 1.0, 100.0, 0.25),
    Stage.REFINER: costs(Stage.REFINER, 2.0, 5.0, 0.5),
}


def test_steps_and_the_rest_are_counted_apart_at_both_stages() -> None:
    schedule, segments = plan_segments(NoiseConfig(), SPEC, refiner=True)
    sample: Sample[float] = new_sample("a", SPEC, schedule, Stage.BASE)
    left = time_left(sample, segments, COSTS)
    assert left.steps == pytest.approx(8 * 1.0 + 2 * 2.0)
    assert left.rest == pytest.approx(0.25 + 0.5 + 5.0)


def test_only_steps_take_longer_in_company() -> None:
    schedule, segments = plan_segments(NoiseConfig(), SPEC, refiner=True)
    sample: Sample[float] = new_sample("a", SPEC, schedule, Stage.BASE)
    left = time_left(sample, segments, COSTS)
    assert left.at_pace(3.0, since=1.0) == pytest.approx(3 * 12.0 - 1.0 + 5.75)
    assert left.at_pace(1.0, since=99.0) == pytest.approx(5.75)
