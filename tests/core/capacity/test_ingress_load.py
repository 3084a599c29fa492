"""What ingress processes tell each other."""

import json

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.ingress_load import IngressLoad, sum_of
from serve_app.core.diffusion.spec import Stage

ADA, BEA = Caller("ada"), Caller("bea", 2.0)
LOAD = IngressLoad(
    {ADA: 2, BEA: 1}, {Stage.BASE: 4}, {Stage.BASE: {ADA: 5.0, BEA: 1.0}}, {ADA: 7.0}
)


def test_a_load_travels_as_json() -> None:
    wire = json.loads(json.dumps(LOAD.to_wire()))
    assert IngressLoad.from_wire(wire) == LOAD


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"version": 1},
        {"version": 2},
        {**LOAD.to_wire(), "jobs": 3},
        {**LOAD.to_wire(), "owed": {"upscaler": []}},
        {**LOAD.to_wire(), "sentAway": [["ada"]]},
        {**LOAD.to_wire(), "sentAway": None},
    ],
)
def test_a_load_of_another_release_is_not_read(wire: dict[str, object]) -> None:
    assert IngressLoad.from_wire(wire) is None


def test_of_many_callers_those_that_owe_least_are_one() -> None:
    owed = {Caller(f"caller {number}"): 1.0 + number for number in range(300)}
    read = IngressLoad.from_wire(IngressLoad(owed={Stage.BASE: owed}).to_wire())
    assert read is not None
    named = read.owed[Stage.BASE]
    assert len(named) == 201
    assert sum(named.values()) == sum(owed.values())
    assert Caller("caller 299") in named
    assert sum(caller.weight for caller in named) == 300


def test_loads_add_up_and_scale() -> None:
    both = sum_of([LOAD, IngressLoad({BEA: 1}, {}, {Stage.REFINER: {BEA: 2.0}}), LOAD])
    assert both.jobs == {ADA: 4, BEA: 3}
    assert both.images == {Stage.BASE: 8, Stage.REFINER: 0}
    assert both.owed == {Stage.BASE: {ADA: 10.0, BEA: 2.0}, Stage.REFINER: {BEA: 2.0}}
    assert both.sent_away == {ADA: 14.0}
    assert LOAD.scaled(2) == sum_of([LOAD, LOAD])
    assert sum_of([]) == IngressLoad()
