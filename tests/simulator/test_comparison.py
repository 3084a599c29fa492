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
    compare_routing,
    hours_for,
    split_by_work,
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


def summary(attained: float, hours: float) -> Summary:
    return Summary(1, 1.0, 1.0, attained, 1.0, 1.0, 1.0, 1.0, hours, 1.0)


def test_savings_are_at_equal_attainment_in_each_trace() -> None:
    few, many = [setting for setting in SETTINGS if setting.family == TUNED][:2]
    comparison = Comparison(
        summaries={
            CHOSEN: [summary(0.95, 3.0), summary(0.90, 4.0)],
            few: [summary(0.90, 4.0), summary(0.90, 5.0)],
            many: [summary(1.00, 8.0), summary(0.95, 8.0)],
        },
        timelines={},
    )
    assert [comparison.saved(TUNED, trace) for trace in (0, 1)] == pytest.approx([0.5, 0.2])
    by_medians = 4.5 + 3.5 * (0.925 - 0.90) / (0.975 - 0.90)
    assert comparison.saved(TUNED) == pytest.approx(1 - 3.5 / by_medians)
    assert comparison.points(OWED) == [pytest.approx((0.925, 3.5))]
    assert comparison.points(OWED, 1) == [(0.90, 4.0)]


def test_the_chosen_setting_has_the_targets_of_the_service() -> None:
    assert CHOSEN.policy == ScalingTargets()


def test_all_gpus_all_the_time_cost_more_than_scaling() -> None:
    trace = tuple(Arrival(float(at), steps=20) for at in range(0, 100, 5))
    fixed, timeline = ComparisonRun(PolicySetting("", "", None), 4, 100.0, trace).run()
    assert fixed.images == len(trace)
    assert fixed.attained == 1
    assert {sum(point.replicas.values()) for point in timeline} == {4}
    scaled, _ = ComparisonRun(CHOSEN, 4, 100.0, trace).run()
    assert scaled.gpu_hours < 0.8 * fixed.gpu_hours


def test_gpus_are_split_by_the_work_of_each_stage() -> None:
    assert split_by_work({Stage.BASE: 300.0, Stage.REFINER: 100.0}, 8) == {
        Stage.BASE: 6,
        Stage.REFINER: 2,
    }


def test_a_setting_s_result_is_its_median_and_its_range_over_traces() -> None:
    comparison = Comparison(
        summaries={CHOSEN: [summary(0.9, 3.0), summary(1.0, 5.0), summary(0.8, 2.0)]},
        timelines={},
    )
    result = comparison.result(CHOSEN)
    assert (result.attained, result.attained_range) == (0.9, (0.8, 1.0))
    assert (result.gpu_hours, result.gpu_hours_range) == (3.0, (2.0, 5.0))
    assert comparison.saved_by_trace(OWED) == [0, 0, 0]


def test_routing_is_compared_on_equal_terms() -> None:
    trace = [Arrival(0.1 * number, steps=20) for number in range(40)]
    runs = compare_routing(trace, gpus=2, seed=1)
    assert set(runs) == {OWED, "two choices"}
    for run in runs.values():
        assert len(run.finished) == len(trace)
        assert all(sum(point.replicas.values()) == 2 for point in run.timeline)
