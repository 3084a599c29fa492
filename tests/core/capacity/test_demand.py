"""The demand for the stages, on its way to the autoscaler."""

from serve_app.core.capacity.autoscaler import StageLoad
from serve_app.core.capacity.demand import Demand, from_wire, stage_load, to_wire
from serve_app.core.diffusion.spec import Stage

DEMANDS = {Stage.BASE: Demand(3, 12.5, 0.5, 40.0), Stage.REFINER: Demand(5, 2.5, 2.0, 8.0)}


def test_demands_travel_as_numbers_by_stage() -> None:
    numbers = to_wire(DEMANDS)
    assert numbers["base_owed"] == 12.5
    assert numbers["refiner_images"] == 5.0
    for stage, demand in DEMANDS.items():
        assert from_wire(numbers, [stage]) == demand


def test_the_numbers_are_plain_floats_since_serve_carries_nothing_else() -> None:
    assert {type(value) for value in to_wire(DEMANDS).values()} == {float}


def test_demands_of_stages_on_the_same_replicas_add_up() -> None:
    assert from_wire(to_wire(DEMANDS), Stage) == Demand(8, 15.0, 2.5, 48.0)


def test_a_stage_without_numbers_has_no_demand() -> None:
    numbers = to_wire({Stage.BASE: DEMANDS[Stage.BASE]})
    assert from_wire(numbers, [Stage.REFINER]) == Demand()
    assert from_wire({}, Stage) == Demand()


def test_a_stage_s_load_is_its_demand_and_its_replicas() -> None:
    load = stage_load(DEMANDS[Stage.BASE], replicas=2, min_replicas=1, max_replicas=4)
    assert load == StageLoad(2, 1, 4, 3, 12.5, 40.0, 0.5)
