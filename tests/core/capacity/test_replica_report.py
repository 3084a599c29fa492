"""A replica's report on the wire."""

import json
from dataclasses import replace

import pytest

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.cost_model import TurnKind
from serve_app.core.capacity.replica_report import (
    WIRE_VERSION,
    RemainingWork,
    ReplicaReport,
    StepCount,
    encode_batch_key,
    key_of,
    remaining_work,
)
from serve_app.core.diffusion.sample import Sample, StageSegment, for_stage
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.scheduling.work import WorkKind
from tests.support.images import COSTS, SDXL, STEP, image, report_of, segment_of
from tests.support.keys import lora

LOAD = TurnKind(WorkKind.LOAD, SDXL)
DECODE = TurnKind(WorkKind.DECODE, SDXL, 1024, 1024)


def test_a_report_travels_as_json() -> None:
    measured = {Caller("key:1", 3.0): 7.5, NO_CALLER: 0.5}
    report = report_of(3, image("a"), image("b", steps=50, width=832), measured=measured)
    wire = json.loads(json.dumps(report.to_wire()))
    assert ReplicaReport.from_wire(wire) == report


def test_the_wire_form_is_that_of_its_version() -> None:
    """If this test has to change, `WIRE_VERSION` has to grow."""
    model = {"stage": "base", "name": "sdxl"}
    step: dict[str, object] = {
        "work": "step",
        "model": model,
        "width": 1024,
        "height": 1024,
        "rows": 8,
    }
    step |= {"extensions": [], "shallow": False}
    batch_key = (
        '{"chunks": 1, "extensions": [], "latent_shape": [128, 128], "model": ["base", "sdxl"], '
        '"shallow": false}'
    )
    caller = {"name": "key:1", "weight": 3.0}
    alice = Caller("key:1", 3.0)
    assert report_of(3, image("a", caller=alice), measured={alice: 7.5}).to_wire() == {
        "version": 4,
        "number": 3,
        "profile": "h200",
        "images": {
            "a base": {
                "batchKey": batch_key,
                "steps": [{"count": 20, "step": step, "rowsAlone": 8}],
                "caller": caller,
            }
        },
        "models": [model],
        "batchSizes": [{"model": model, "images": 4, "laneCounts": [8]}],
        "costs": [{"turn": step, "seconds": 0.1}],
        "measured": [{"caller": caller, "seconds": 7.5}],
    }


@pytest.mark.parametrize("version", [None, 0, 1, "2"])
def test_a_report_of_an_unknown_version_is_not_read(version: object) -> None:
    wire = report_of(3, image("a")).to_wire()
    assert ReplicaReport.from_wire(wire | {"version": version}) is None
    assert ReplicaReport.from_wire({"number": 5}) is None
    assert ReplicaReport.from_wire({"version": WIRE_VERSION, "number": 5}) is None


def test_only_the_costs_of_steps_and_loads_travel() -> None:
    costs = replace(COSTS, seconds_by_turn={STEP: 0.1, LOAD: 7.0, DECODE: 0.5})
    report = ReplicaReport.from_wire(report_of(1, costs=costs).to_wire())
    assert report is not None
    assert report.costs.seconds_by_turn == {STEP: 0.1, LOAD: 7.0}


def test_what_remains_of_an_image_are_the_steps_to_the_end_of_its_segment() -> None:
    sample = replace(image("a", steps=20), index=5)
    assert remaining_work(sample, StageSegment(Stage.BASE, 16, last=False), COSTS) == RemainingWork(
        encode_batch_key(sample.batch_key), (StepCount(11, STEP, STEP),), NO_CALLER
    )
    assert remaining_work(replace(sample, index=20), segment_of(sample), COSTS).steps == 0


def test_steps_of_each_kind_travel_with_what_they_cost() -> None:
    plain = image("a", steps=20)
    sample = replace(plain, spec=replace(plain.spec, cache=StepCache.DEEPCACHE))
    wire = json.loads(json.dumps(report_of(1, sample).to_wire()))
    read = ReplicaReport.from_wire(wire)
    assert read is not None
    (work,) = read.remaining.values()
    assert work == remaining_work(sample, segment_of(sample), COSTS)
    assert [(kind.count, kind.step.shallow) for kind in work.kinds] == [(7, False), (13, True)]
    costs = replace(COSTS, seconds_by_turn={STEP: 0.1, replace(STEP, shallow=True): 0.01})
    assert work.full_seconds(costs) == pytest.approx(7 * 0.1 + 13 * 0.01)
    assert work.load(costs).step_seconds == pytest.approx((7 * 0.1 + 13 * 0.01) / 20)
    assert work.batch_key == encode_batch_key(replace(sample, index=1).batch_key)


def test_both_stages_of_an_image_have_keys_of_their_own() -> None:
    sample = image("a")
    assert key_of(sample) != key_of(for_stage(sample, Stage.REFINER))


@pytest.mark.parametrize(
    "other",
    [
        image("b", width=832),
        image("b", model="anime"),
        image("b", loras=(lora("ink", 0.5),)),
        replace(image("b"), chunks=2),
        for_stage(image("b"), Stage.REFINER),
    ],
)
def test_batch_keys_are_encoded_differently_if_they_differ(other: Sample[float]) -> None:
    same = image("c", steps=50)
    assert encode_batch_key(image("a").batch_key) == encode_batch_key(same.batch_key)
    assert encode_batch_key(image("a").batch_key) != encode_batch_key(other.batch_key)
