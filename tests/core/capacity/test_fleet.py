"""What a process knows of replicas that it sends images to, and that report once a second."""

from dataclasses import replace

import pytest

from serve_app.core.caller import Caller
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.capacity.replica_report import key_of
from tests.support.fleets import MANY, WITH_LOAD, fleet, rank, rank_wide, report, send
from tests.support.images import STEP, image, report_of, segment_of

A, B = Caller("a"), Caller("b")


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


def test_a_new_replica_without_a_report_has_the_costs_of_the_others() -> None:
    known = fleet("r1")
    send(known, "r1", image("a", steps=50))
    known.set_replicas(["r1", "r2"], max_images=MANY)
    assert rank_wide(known) == ["r2", "r1"]
    known.set_replicas(["r2"], max_images=MANY)
    assert rank(known, image("new")) == ["r2"]


def test_batched_seconds_are_those_of_the_image_s_steps() -> None:
    sample = image("a", steps=50)
    assert fleet("r1").batched_seconds(sample, segment_of(sample)) == pytest.approx(5.0)


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
    report(known, "r1", 2, *(image(f"a{number}", caller=A) for number in range(12)))
    report(known, "r1", 3)
    assert known.take_charges() == {}
