"""What is wanted of the stages, on its way to whoever chooses the number of replicas."""

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.capacity.demand import Demand, from_wire, stage_load, to_wire
from serve_app.core.diffusion.spec import Stage

DEMANDS = {Stage.BASE: Demand(3, 12.5, 0.5, 40.0), Stage.REFINER: Demand(5, 2.5, 2.0, 8.0)}


def test_what_is_told_in_numbers_is_understood_by_stage() -> None:
    numbers = to_wire(DEMANDS)
    assert numbers["base_owed"] == 12.5
    assert numbers["refiner_images"] == 5.0
    for stage, demand in DEMANDS.items():
        assert from_wire(numbers, [stage]) == demand


def test_numbers_are_plain_floats_for_serve_takes_nothing_else() -> None:
    assert {type(value) for value in to_wire(DEMANDS).values()} == {float}


def test_stages_that_run_on_the_same_replicas_want_them_together() -> None:
    assert from_wire(to_wire(DEMANDS), Stage) == Demand(8, 15.0, 2.5, 48.0)


def test_a_stage_that_nobody_names_is_not_wanted() -> None:
    numbers = to_wire({Stage.BASE: DEMANDS[Stage.BASE]})
    assert from_wire(numbers, [Stage.REFINER]) == Demand()
    assert from_wire({}, Stage) == Demand()


def test_a_stage_is_looked_at_with_its_replicas() -> None:
    look = stage_load(DEMANDS[Stage.BASE], replicas=2, min_replicas=1, max_replicas=4)
    assert look == StageLoad(2, 1, 4, 3, 12.5, 40.0, 0.5)
