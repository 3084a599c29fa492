"""What a process knows of replicas that it sends images to, and that report once a second."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.capacity.replica_report import key_of
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample
from serve_app.core.scheduling.work import BatchSize, WorkKind
from tests.support.images import COSTS, SDXL, STEP, image, report_of, segment_of
from tests.support.keys import base_key

ANIME = base_key("anime")
LOAD = TurnKind(WorkKind.LOAD, ANIME)
WITH_LOAD = replace(COSTS, seconds_by_turn={STEP: 0.1, LOAD: 7.0})
MANY = 100  # images that Serve would let a replica have


def fleet(*ids: str, max_images: int = MANY) -> Fleet:
    fleet = Fleet(4)
    fleet.set_replicas(ids, max_images=max_images)
    for id in ids:
        report(fleet, id, 1)
    return fleet


def report(
    fleet: Fleet,
    id: str,
    number: int,
    *samples: Sample[Any],
    models: tuple[ModelKey, ...] = (SDXL,),
    costs: CostTable = WITH_LOAD,
    profile: str = "h200",
    measured: dict[Caller, float] | None = None,
) -> None:
    made = report_of(
        number, *samples, models=models, costs=costs, profile=profile, measured=measured
    )
    assert fleet.apply_report(id, made.to_wire(), 0.0)


def rank(fleet: Fleet, sample: Sample[Any]) -> list[str]:
    return fleet.rank(sample, segment_of(sample))


def rank_wide(fleet: Fleet) -> list[str]:
    """Return the replicas for a new image of a size that no other image has."""
    return rank(fleet, image("new", width=832))


def send(fleet: Fleet, to: str, *samples: Sample[Any]) -> None:
    for sample in samples:
        fleet.send(to, sample, segment_of(sample))


def test_images_of_one_request_go_to_replicas_in_turn() -> None:
    known, chosen = fleet("r1", "r2", "r3"), []
    for number in range(3):
        sample = image(str(number))
        chosen.append(rank(known, sample)[0])
        send(known, chosen[-1], sample)
    assert sorted(chosen) == ["r1", "r2", "r3"]


def test_several_senders_begin_with_replicas_of_their_own() -> None:
    ids, chosen = [f"r{number}" for number in range(8)], []
    for number in range(8):
        known = Fleet(4, sender=f"ingress-{number}")
        known.set_replicas(ids, max_images=MANY)
        order = []
        for image_number in range(8):
            sample = image(str(image_number))
            order.append(rank(known, sample)[0])
            send(known, order[-1], sample)
        assert sorted(order) == ids  # then it takes the others in turn
        chosen.append(order[0])
    assert len(set(chosen)) >= 4


def test_a_short_image_goes_past_the_replica_with_a_long_one() -> None:
    known = fleet("r1", "r2")
    send(known, "r1", image("long", steps=150))
    send(known, "r2", image("s1", steps=4), image("s2", steps=4), image("s3", steps=4))
    assert rank(known, image("new", steps=30, width=832)) == ["r2", "r1"]


def test_an_image_that_ended_is_gone_though_a_late_report_still_has_it() -> None:
    known, ended = fleet("r1", "r2"), image("ended", steps=150)
    send(known, "r1", ended)
    known.end("r1", key_of(ended))
    report(known, "r1", 2, ended)
    assert rank(known, image("new"))[0] == "r2"  # only since r1 was chosen more recently
    send(known, "r2", image("busy"))
    assert rank_wide(known)[0] == "r1"
    report(known, "r1", 3, ended)
    assert rank_wide(known)[0] == "r1"
    report(known, "r1", 4, ended)  # by now another sender must have sent it again
    assert rank_wide(known)[0] == "r2"


def test_an_image_that_was_sent_is_there_for_a_few_reports_without_it() -> None:
    known = fleet("r1", "r2")
    send(known, "r1", image("sent", steps=150))
    for number in (2, 3):
        report(known, "r1", number)
        assert rank_wide(known)[0] == "r2"
    send(known, "r2", image("other", steps=10))
    report(known, "r1", 4)
    assert rank_wide(known)[0] == "r1"


def test_a_report_with_the_image_makes_up_for_those_without_it() -> None:
    known, sent = fleet("r1", "r2"), image("sent", steps=150)
    send(known, "r1", sent)
    report(known, "r1", 2)
    report(known, "r1", 3)
    report(known, "r1", 4, sent)
    send(known, "r2", image("other", steps=10))
    report(known, "r1", 5)
    report(known, "r1", 6)
    assert rank_wide(known)[0] == "r2"


def test_a_report_has_the_progress_of_all_images_and_those_of_other_senders() -> None:
    known = fleet("r1", "r2")
    send(known, "r1", image("mine", steps=150))
    report(known, "r1", 2, image("mine", steps=5))
    report(known, "r2", 2, image("foreign", steps=30))
    assert rank_wide(known) == ["r1", "r2"]


def test_an_image_of_another_sender_is_gone_with_the_first_report_without_it() -> None:
    known, foreign = fleet("r1", "r2"), image("foreign", steps=150)
    report(known, "r1", 2, foreign)
    known.end("r1", key_of(foreign))  # it was not sent from here
    assert rank_wide(known) == ["r2", "r1"]
    report(known, "r1", 3)
    assert rank_wide(known) == ["r1", "r2"]


def test_the_same_report_again_changes_nothing() -> None:
    known = fleet("r1", "r2")
    send(known, "r1", image("sent", steps=150))
    for _ in range(9):
        report(known, "r1", 1)
    assert rank_wide(known)[0] == "r2"


def test_a_report_of_an_unknown_version_changes_nothing() -> None:
    known = fleet("r1", "r2")
    wire = report_of(2, image("a", steps=150)).to_wire() | {"version": 99}
    assert not known.apply_report("r1", wire, 0.0)
    assert not known.apply_report("r1", wire, 0.0)
    assert rank_wide(known) == ["r1", "r2"]


def test_an_image_sent_elsewhere_or_to_the_same_replica_again_counts_once() -> None:
    known, sample = fleet("r1", "r2"), image("a", steps=150)
    send(known, "r1", sample)
    send(known, "r2", sample)
    assert rank_wide(known)[0] == "r1"
    send(known, "r2", sample)
    assert rank_wide(known)[0] == "r1"


def test_before_its_first_report_a_replica_has_the_places_of_the_configured_batch() -> None:
    known = Fleet(2)
    known.set_replicas(["r1"], max_images=MANY)
    for number in range(2 * MAX_QUEUED_BATCHES):
        assert rank(known, image("new")) == ["r1"]
        send(known, "r1", image(str(number)))
    assert rank(known, image("new")) == []


def test_a_replica_has_places_for_no_more_than_a_few_batches() -> None:
    known = fleet("r1")
    for number in range(4 * MAX_QUEUED_BATCHES):
        assert rank(known, image("new")) == ["r1"]
        send(known, "r1", image(str(number)))
    assert rank(known, image("new")) == []
    known.end("r1", key_of(image("0")))
    assert rank(known, image("new")) == ["r1"]
    known.set_replicas(["r1"], max_images=5)
    assert rank(known, image("new")) == []


def test_a_replica_with_the_model_is_better_than_one_that_must_load_it() -> None:
    known = Fleet(4)
    known.set_replicas(["r1", "r2"], max_images=MANY)
    report(known, "r1", 1, models=(ANIME,), costs=COSTS)
    report(known, "r2", 1, image("x", steps=60), costs=COSTS)
    assert rank_wide(known)[0] == "r2"  # 6 s of waiting, not 20 s of loading
    assert rank(known, image("new", width=832, model="anime"))[0] == "r1"
    report(known, "r1", 2)
    assert rank(known, image("new", width=832, model="anime"))[0] == "r1"  # 7 s of loading


def test_a_new_replica_without_a_report_has_the_costs_of_the_others() -> None:
    known = fleet("r1")
    send(known, "r1", image("a", steps=50))
    known.set_replicas(["r1", "r2"], max_images=MANY)
    assert rank_wide(known) == ["r2", "r1"]
    known.set_replicas(["r2"], max_images=MANY)
    assert rank(known, image("new")) == ["r2"]


def test_isolated_seconds_are_those_of_the_image_s_steps() -> None:
    sample = image("a", steps=50)
    assert fleet("r1").isolated_seconds(sample, segment_of(sample)) == pytest.approx(5.0)


def test_replicas_of_one_profile_count_as_equally_fast_and_those_of_two_do_not() -> None:
    slow = replace(WITH_LOAD, seconds_by_turn={STEP: 0.3})
    known = fleet("r1", "r2")
    send(known, "r1", image("a"))
    report(known, "r2", 2, costs=slow)  # something held it up
    assert rank(known, image("new"))[0] == "r2"
    report(known, "r2", 3, costs=slow, profile="old card")
    report(known, "r1", 2, image("a"))
    assert rank(known, image("new"))[0] == "r1"


def test_a_late_end_does_not_remove_an_image_that_was_sent_elsewhere_meanwhile() -> None:
    known, sample = fleet("r1", "r2"), image("a", steps=150)
    send(known, "r1", sample)
    send(known, "r2", sample)  # r1 was lost
    known.end("r1", key_of(sample))
    assert rank_wide(known)[0] == "r1"


def test_a_replica_that_was_removed_is_ignored() -> None:
    known = fleet("r1")
    send(known, "r2", image("a"))
    known.end("r2", key_of(image("a")))
    assert rank(known, image("new")) == ["r1"]


A, B = Caller("a"), Caller("b")
FLOOD = [image(f"a{number}", caller=A) for number in range(12)]


def test_a_newcomer_has_a_place_where_a_flood_from_here_has_taken_them_all() -> None:
    known = fleet("r1")
    send(known, "r1", *FLOOD)
    assert rank(known, image("a12", caller=A)) == []
    for number in range(2):  # its share of a batch of four
        assert rank(known, image("b", caller=B)) == ["r1"]
        send(known, "r1", image(f"b{number}", caller=B))
    assert rank(known, image("b", caller=B)) == []
    known.end("r1", key_of(image("b0")))
    assert rank(known, image("b", caller=B)) == ["r1"]


def test_replicas_are_full_when_nobody_has_a_place() -> None:
    known = fleet("r1", "r2")
    assert not known.are_full()
    send(known, "r1", *FLOOD, *(image(f"x{n}", caller=Caller(f"x{n}")) for n in range(12)))
    report(known, "r2", 2, *FLOOD, *(image(f"y{n}", caller=Caller(f"y{n}")) for n in range(11)))
    assert not known.are_full()  # a newcomer has one
    assert rank(known, image("b", caller=B)) == ["r2"]
    send(known, "r2", image("b", caller=B))
    assert known.are_full()
    assert rank(known, image("c", caller=Caller("c"))) == []
    known.end("r1", key_of(image("x0")))
    assert not known.are_full()
    known.set_replicas(["r1", "r2"], max_images=12)  # as Serve's own limit allows
    assert known.are_full()


def test_replicas_are_not_full_while_a_model_with_larger_batches_has_places() -> None:
    known = fleet("r1")
    sizes = {SDXL: BatchSize(1, 2), ANIME: BatchSize(4, 8)}
    report(known, "r1", 2, *FLOOD, costs=replace(COSTS, batch_sizes=sizes))
    assert rank(known, image("b", caller=B)) == []
    assert rank(known, image("c", model="anime", caller=B)) == ["r1"]
    assert not known.are_full()


def test_a_newcomer_has_a_place_where_a_flood_of_another_ingress_has_taken_them_all() -> None:
    known = fleet("r1")
    report(known, "r1", 2, *FLOOD)
    assert rank(known, image("a12", caller=A)) == []
    assert rank(known, image("b", caller=B)) == ["r1"]
    known.set_replicas(["r1"], max_images=12)  # as Serve's own limit allows
    assert rank(known, image("b", caller=B)) == []


def test_images_of_another_size_have_places_beside_a_flood_until_they_fill_a_batch() -> None:
    known = fleet("r1")
    wide = [image(f"b{number}", width=832, caller=B) for number in range(5)]
    report(known, "r1", 2, *FLOOD, *wide[:3])
    assert rank(known, wide[3]) == ["r1"]
    assert rank(known, image("b", caller=B)) == []  # of the flood's size, with a full batch
    send(known, "r1", wide[3])
    assert rank(known, wide[4]) == []


def test_callers_are_charged_with_what_replicas_measured_for_all_senders() -> None:
    known = fleet("r1")
    report(known, "r1", 2, measured={A: 100.0, B: 1.0})
    known.take_charges()
    report(known, "r1", 3, measured={A: 104.0, B: 1.0})
    assert known.take_charges() == {A: 4.0, B: 0.0}
    report(known, "r1", 4, measured={A: 0.5})  # it was forgotten meanwhile, or has restarted
    assert known.take_charges() == {A: 0.5}
    assert known.take_charges() == {}


def test_what_a_replica_measured_before_it_was_known_is_nobody_s_charge() -> None:
    known = Fleet(4)
    known.set_replicas(["r1"], max_images=MANY)
    report(known, "r1", 7, measured={A: 1000.0})
    assert known.take_charges() == {}


SENT = image("a", steps=40, caller=A)  # 40 steps of 0.1 s in batches of four: 1 s


def sent_to(known: Fleet, *ids: str) -> None:
    for id in ids:
        assert known.send(id, SENT, segment_of(SENT)) == pytest.approx(1.0)


@pytest.mark.parametrize("ending", ["end", "lost", "expired", "elsewhere", "again"])
def test_a_prediction_is_taken_back_once_however_the_image_left(ending: str) -> None:
    known = fleet("r1", "r2")
    sent_to(known, "r1")
    report(known, "r1", 2, SENT)
    assert known.take_charges() == {}
    match ending:
        case "end":
            known.end("r1", key_of(SENT))
            known.end("r1", key_of(SENT))
        case "lost":
            known.set_replicas(["r2"], max_images=MANY)
        case "expired":
            for number in range(3, 7):
                report(known, "r1", number)
        case "elsewhere":
            sent_to(known, "r2")
        case "again":
            sent_to(known, "r1")
    assert known.take_charges() == {A: pytest.approx(-1.0)}
    for number in range(10, 15):
        report(known, "r2", number)
    known.end("r2", key_of(SENT))
    again = -1.0 if ending == "elsewhere" else 0.0
    assert known.take_charges().get(A, 0.0) == pytest.approx(again)


def test_an_image_sent_to_a_replica_that_has_gone_costs_nothing() -> None:
    known = fleet("r1")
    assert known.send("gone", SENT, segment_of(SENT)) == 0.0
    assert known.take_charges() == {}


def test_images_of_other_senders_are_charged_only_as_measured() -> None:
    known = fleet("r1")
    report(known, "r1", 2, *FLOOD)
    report(known, "r1", 3)
    assert known.take_charges() == {}


def test_a_replica_that_fell_silent_gets_nothing_until_it_reports_anew() -> None:
    known, sample = fleet("a", "b"), image("x")
    known.suspect(["a", "unknown"])
    assert known.rank(sample, segment_of(sample)) == ["b"]
    known.apply_report("a", report_of(1).to_wire(), 1.0)  # the same again
    assert known.rank(sample, segment_of(sample)) == ["b"]
    known.apply_report("a", report_of(2).to_wire(), 2.0)
    assert sorted(known.rank(sample, segment_of(sample))) == ["a", "b"]


def test_a_replica_whose_reports_stopped_while_others_go_on_gets_nothing() -> None:
    known, sample = fleet("a", "b"), image("x")
    known.apply_report("b", report_of(2).to_wire(), 12.0)
    assert sorted(known.rank(sample, segment_of(sample))) == ["a", "b"]
    known.apply_report("b", report_of(3).to_wire(), 12.5)
    assert known.rank(sample, segment_of(sample)) == ["b"]


def test_replicas_that_all_are_quiet_or_suspect_are_as_good_as_any() -> None:
    known, sample = fleet("a", "b"), image("x")
    known.suspect(["a", "b"])
    assert sorted(known.rank(sample, segment_of(sample))) == ["a", "b"]


def test_an_image_avoids_the_replicas_that_fell_silent_with_it() -> None:
    known, sample = fleet("a", "b"), image("x")
    segment = replace(segment_of(sample), avoid=("a",))
    assert known.rank(sample, segment) == ["b"]
