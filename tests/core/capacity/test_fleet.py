"""What is known of replicas that one sends images to, and hears of once a second."""

import json
from typing import Any

import pytest

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.fleet import Fleet, ReplicaReport, key_of, shape_of
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind

STEP = TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "sdxl"), 1024, 1024, 8)
LOAD = TurnKind(WorkKind.LOAD, ModelKey(Stage.BASE, "anime"))
PRICES = CostTable({STEP: 0.1, LOAD: 7.0}, {ModelKey(Stage.BASE, "sdxl"): BatchSize(4, 8)})
MOST = 100


def image(id: str, steps: int = 20, width: int = 1024, model: str = "sdxl") -> Sample[Any]:
    spec = ImageSpec(
        prompt="a", seed=1, width=width, height=1024, steps=steps, guidance=6.9, model=model
    )
    schedule = make_schedule(NoiseConfig.from_scheduler_config({}), spec.sampler, steps, None, 1.0)
    return new_sample(id, spec, schedule, Stage.BASE)


def leg(sample: Sample[Any]) -> StageSegment:
    return StageSegment(Stage.BASE, len(sample.schedule), last=True)


def report(
    number: int,
    *samples: Sample[Any],
    models: tuple[str, ...] = ("sdxl",),
    prices: CostTable = PRICES,
    profile: str = "h200",
) -> Any:
    owed = [PendingWork(one, leg(one), WorkKind.STEP, due=0) for one in samples]
    keys = [ModelKey(Stage.BASE, model) for model in models]
    return ReplicaReport.of(number, profile, owed, keys, prices).to_wire()


def fleet(*ids: str) -> Fleet:
    made = Fleet(4)
    made.set_replicas(ids)
    for id in ids:
        made.apply_report(id, report(1))
    return made


def ranked(there: Fleet, sample: Sample[Any], most: int = MOST) -> list[str]:
    return there.rank(sample, leg(sample), most)


def send(there: Fleet, to: str, *samples: Sample[Any]) -> None:
    for sample in samples:
        there.send(to, sample, leg(sample))


def test_a_report_travels_in_plain_values() -> None:
    packed = report(3, image("a"), image("b", steps=50, width=832))
    told = ReplicaReport.from_wire(json.loads(json.dumps(packed)))
    assert told == ReplicaReport.from_wire(packed)
    assert told.remaining[key_of(image("a"))] == (shape_of(image("a")), 20, STEP)
    assert told.costs == PRICES


def test_images_of_one_request_go_to_replicas_in_turn() -> None:
    there, homes = fleet("r1", "r2", "r3"), []
    for number in range(3):
        sample = image(str(number))
        homes.append(ranked(there, sample)[0])
        send(there, homes[-1], sample)
    assert sorted(homes) == ["r1", "r2", "r3"]


def test_a_short_image_goes_past_the_replica_with_a_long_one() -> None:
    there = fleet("r1", "r2")
    send(there, "r1", image("long", steps=150))
    send(there, "r2", image("s1", steps=4), image("s2", steps=4), image("s3", steps=4))
    assert ranked(there, image("new", steps=30, width=832)) == ["r2", "r1"]


def test_what_ended_is_not_there_though_a_late_report_still_has_it() -> None:
    there, gone = fleet("r1", "r2"), image("gone", steps=150)
    send(there, "r1", gone)
    there.end("r1", key_of(gone))
    there.apply_report("r1", report(2, gone))
    assert ranked(there, image("new"))[0] == "r2"  # r1 was chosen last: nothing else speaks for r2
    send(there, "r2", image("busy"))
    assert ranked(there, image("new", width=832))[0] == "r1"
    for number in (3, 4):
        there.apply_report("r1", report(number, gone))
    there.apply_report("r1", report(5, gone))  # then it is somebody else's, who sent it again
    assert ranked(there, image("new", width=832))[0] == "r2"


def test_what_was_sent_is_there_though_an_early_report_has_it_not_yet_and_not_for_ever() -> None:
    there = fleet("r1", "r2")
    send(there, "r1", image("sent", steps=150))
    for number in (2, 3):
        there.apply_report("r1", report(number))
        assert ranked(there, image("new", width=832))[0] == "r2"
    send(there, "r2", image("other", steps=10))
    there.apply_report("r1", report(4))
    assert ranked(there, image("new", width=832))[0] == "r1"


def test_a_report_says_how_far_images_are_those_of_others_too() -> None:
    there = fleet("r1", "r2")
    send(there, "r1", image("mine", steps=150))
    there.apply_report("r1", report(2, image("mine", steps=5)))
    there.apply_report("r2", report(2, image("foreign", steps=30)))
    assert ranked(there, image("new", width=832)) == ["r1", "r2"]


def test_the_same_report_again_changes_nothing() -> None:
    there = fleet("r1", "r2")
    send(there, "r1", image("sent", steps=150))
    for _ in range(9):
        there.apply_report("r1", report(1))
    assert ranked(there, image("new", width=832))[0] == "r2"


def test_an_image_sent_elsewhere_or_to_the_same_again_counts_once() -> None:
    there, sample = fleet("r1", "r2"), image("a", steps=150)
    send(there, "r1", sample)
    send(there, "r2", sample)
    assert ranked(there, image("new", width=832))[0] == "r1"
    send(there, "r2", sample)
    assert ranked(there, image("new", width=832))[0] == "r1"


def test_before_anybody_reported_a_replica_has_as_many_places_as_were_meant() -> None:
    there = Fleet(2)
    there.set_replicas(["r1"])
    for number in range(2 * MAX_QUEUED_BATCHES):
        assert ranked(there, image("new")) == ["r1"]
        send(there, "r1", image(str(number)))
    assert ranked(there, image("new")) == []


def test_a_replica_takes_no_more_than_a_few_batches() -> None:
    there = fleet("r1")
    for number in range(4 * MAX_QUEUED_BATCHES):
        assert ranked(there, image("new")) == ["r1"]
        send(there, "r1", image(str(number)))
    assert ranked(there, image("new")) == []
    there.end("r1", key_of(image("0")))
    assert ranked(there, image("new")) == ["r1"]
    assert ranked(there, image("new"), most=5) == []


def test_a_replica_with_the_model_is_better_than_one_that_must_load_it() -> None:
    there = Fleet(4)
    there.set_replicas(["r1", "r2"])
    there.apply_report("r1", report(1, models=("anime",)))
    there.apply_report("r2", report(1, image("x", steps=60)))
    assert ranked(there, image("new", width=832))[0] == "r2"  # 6 s of waiting, not 20 of loading
    assert ranked(there, image("new", width=832, model="anime"))[0] == "r1"
    there.apply_report("r1", report(2))
    assert ranked(there, image("new", width=832, model="anime"))[0] == "r1"  # 7 s of loading


def test_a_newcomer_that_said_nothing_yet_is_as_the_others() -> None:
    there = fleet("r1")
    send(there, "r1", image("a", steps=50))
    there.set_replicas(["r1", "r2"])
    assert ranked(there, image("new", width=832)) == ["r2", "r1"]
    there.set_replicas(["r2"])
    assert ranked(there, image("new")) == ["r2"]


def test_who_would_be_done_first_alone_is_known() -> None:
    there = fleet("r1")
    assert there.isolated_seconds(image("a", steps=50), leg(image("a", steps=50))) == pytest.approx(
        5.0
    )


def test_replicas_of_a_kind_count_as_equally_fast_and_those_of_two_kinds_do_not() -> None:
    slow = CostTable({STEP: 0.3}, PRICES.batch_sizes)
    there = fleet("r1", "r2")
    send(there, "r1", image("a"))
    there.apply_report("r2", report(2, prices=slow))  # it was held up
    assert ranked(there, image("new"))[0] == "r2"
    there.apply_report("r2", report(3, prices=slow, profile="old card"))
    there.apply_report("r1", report(2, image("a")))
    assert ranked(there, image("new"))[0] == "r1"


def test_an_end_that_is_told_late_does_not_take_what_was_sent_elsewhere_meanwhile() -> None:
    there, sample = fleet("r1", "r2"), image("a", steps=150)
    send(there, "r1", sample)
    send(there, "r2", sample)  # r1 is lost
    there.end("r1", key_of(sample))
    assert ranked(there, image("new", width=832))[0] == "r1"


def test_a_replica_that_has_gone_takes_nothing_and_ends_nothing() -> None:
    there = fleet("r1")
    send(there, "r2", image("a"))
    there.end("r2", key_of(image("a")))
    assert ranked(there, image("new")) == ["r1"]
