"""Settings against each other: at equal attainment, trace by trace."""

import pytest

from serve_app.core.capacity.autoscaler import ScalingTargets
from serve_app.core.diffusion.spec import Stage
from serve_app.simulator.comparison import (
    CHOSEN,
    OWED,
    SETTINGS,
    TUNED,
    Comparison,
    ComparisonRun,
    PolicySetting,
    hours_for,
    shared_by_work,
)
from serve_app.simulator.summary import Summary
from serve_app.simulator.traces import Arrival

POINTS = [(0.90, 4.0), (0.95, 5.0), (0.93, 6.0), (0.99, 9.0)]


@pytest.mark.parametrize(
    ("attained", "hours"),
    [(0.90, 4.0), (0.92, 4.4), (0.95, 5.0), (0.97, 7.0), (0.99, 9.0), (1.0, 9.0), (0.5, 4.0)],
)
def test_hours_lie_between_the_best_settings_and_never_beyond(
    attained: float, hours: float
) -> None:
    assert hours_for(attained, POINTS) == pytest.approx(hours)
    assert hours_for(attained, POINTS[::-1]) == pytest.approx(hours)


def came_to(attained: float, hours: float) -> Summary:
    return Summary(1, 1.0, 1.0, attained, 1.0, 1.0, 1.0, 1.0, hours, 1.0)


def test_what_is_saved_is_of_equal_attainment_in_each_trace() -> None:
    few, many = [one for one in SETTINGS if one.family == TUNED][:2]
    compared = Comparison(
        outcomes={
            CHOSEN: [came_to(0.95, 3.0), came_to(0.90, 4.0)],
            few: [came_to(0.90, 4.0), came_to(0.90, 5.0)],
            many: [came_to(1.00, 8.0), came_to(0.95, 8.0)],
        },
        moments={},
    )
    assert [compared.saved(TUNED, trace) for trace in (0, 1)] == pytest.approx([0.5, 0.2])
    by_medians = 4.5 + 3.5 * (0.925 - 0.90) / (0.975 - 0.90)
    assert compared.saved(TUNED) == pytest.approx(1 - 3.5 / by_medians)
    assert compared.points(OWED) == [pytest.approx((0.925, 3.5))]
    assert compared.points(OWED, 1) == [(0.90, 4.0)]


def test_the_chosen_setting_has_the_aims_of_the_service() -> None:
    assert CHOSEN.way == ScalingTargets()


def test_all_gpus_all_the_time_cost_what_they_do() -> None:
    trace = tuple(Arrival(float(at), steps=20) for at in range(0, 100, 5))
    outcome, moments = ComparisonRun(PolicySetting("", "", None), 4, 100.0, trace).run()
    assert outcome.images == len(trace) and outcome.attained == 1
    assert {sum(one.replicas.values()) for one in moments} == {4}
    scaled, _ = ComparisonRun(CHOSEN, 4, 100.0, trace).run()
    assert scaled.gpu_hours < 0.8 * outcome.gpu_hours


def test_gpus_are_shared_by_the_work_of_each_stage() -> None:
    assert shared_by_work({Stage.BASE: 300.0, Stage.REFINER: 100.0}, 8) == {
        Stage.BASE: 6,
        Stage.REFINER: 2,
    }
