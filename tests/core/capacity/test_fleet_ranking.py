"""Which replicas a fleet has places on, and in which order."""

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.capacity.replica_load import KeyLoad
from serve_app.core.capacity.replica_report import key_of
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES, has_place
from serve_app.core.diffusion.sample import Sample
from serve_app.core.scheduling.work import BatchSize
from tests.support.fleets import ANIME, MANY, fleet, rank, rank_wide, report, send
from tests.support.images import COSTS, SDXL, image, report_of, segment_of

A, B = Caller("a"), Caller("b")
FLOOD = [image(f"a{number}", caller=A) for number in range(12)]


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


def test_a_newcomer_has_a_place_where_a_flood_from_here_has_taken_them_all() -> None:
    known = fleet("r1")
    send(known, "r1", *FLOOD)
    assert rank(known, image("a12", caller=A)) == []
    for number in range(4):  # its share of two batches of four
        assert rank(known, image("b", caller=B)) == ["r1"]
        send(known, "r1", image(f"b{number}", caller=B))
    assert rank(known, image("b", caller=B)) == []
    known.end("r1", key_of(image("b0")))
    assert rank(known, image("b", caller=B)) == ["r1"]


def test_replicas_are_full_when_nobody_has_a_place() -> None:
    known = fleet("r1", "r2")
    assert not known.are_full()
    send(known, "r1", *FLOOD, *(image(f"x{n}", caller=Caller(f"x{n}")) for n in range(12)))
    wide = image("w", width=832, caller=Caller("w"))
    report(
        known, "r2", 2, *FLOOD, wide, *(image(f"y{n}", caller=Caller(f"y{n}")) for n in range(11))
    )
    assert rank(known, image("b", caller=B)) == []
    assert not known.are_full()  # there is one for an image of another size
    assert rank(known, image("b", width=640, caller=B)) == ["r2"]
    send(known, "r2", image("b", width=640, caller=B))
    send(known, "r2", *(image(f"z{n}", caller=Caller(f"z{n}")) for n in range(7)))
    assert known.are_full()
    assert rank(known, image("c", width=1152, caller=Caller("c"))) == []
    known.end("r1", key_of(image("x0")))
    assert not known.are_full()
    known.set_replicas(["r1", "r2"], max_images=12)  # as Serve's own limit allows
    assert known.are_full()


def test_replicas_are_not_full_while_a_model_with_larger_batches_has_places() -> None:
    known = fleet("r1")
    sizes = {SDXL: BatchSize(1, (2,)), ANIME: BatchSize(4, (8,))}
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
    report(known, "r1", 2, *FLOOD, *wide[:3], image("b", caller=B))
    assert rank(known, wide[3]) == ["r1"]
    assert rank(known, image("c", caller=B)) == []  # of the flood's size, with a full batch
    send(known, "r1", wide[3])
    assert rank(known, wide[4]) == []


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


IDS = ("r1", "r2", "r3")
CALLERS = (A, B, Caller("heavy", 3.0))
WIDTHS = (1024, 832, 1152)
_IMAGES = st.tuples(st.sampled_from(CALLERS), st.sampled_from(WIDTHS), st.sampled_from((4, 30)))


def _by_definition(
    known: Fleet, images: dict[str, list[Sample[Any]]], chosen: dict[str, int], new: Sample[Any]
) -> list[str]:
    """Return the replicas with a place, the best one first, computed from nothing but images."""

    def empty(sample: Sample[Any]) -> KeyLoad:
        seconds = known.batched_seconds(sample, segment_of(sample)) / sample.spec.steps
        return KeyLoad(0, 0, seconds, seconds)

    scores = dict[str, float]()
    seconds, added = dict[str, float](), dict[str, float]()
    for id, samples in images.items():
        loads = dict[object, KeyLoad]()
        for sample in samples:
            load = loads.get(sample.batch_key) or empty(sample)
            loads[sample.batch_key] = load.add(sample.spec.steps)
        same = loads.pop(new.batch_key, empty(new))
        callers = Counter(sample.caller for sample in samples)
        if has_place(4, callers, new.caller, same.stepping, len(loads) + 1):
            seconds[id] = sum(load.seconds(4) for load in loads.values()) + same.seconds(4)
            added[id] = same.add(new.spec.steps).seconds(4) - same.seconds(4)
    weight = 2.0 if all(seconds.values()) else 1.0
    for id, done in seconds.items():
        scores[id] = round((done + weight * added[id]) * (1 if done else 0.9), 6)
    return sorted(scores, key=lambda id: (scores[id], chosen.get(id, 0), id))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(IDS), st.sampled_from(("send", "report", "empty")), _IMAGES),
        max_size=40,
    ),
    _IMAGES,
)
def test_what_a_fleet_keeps_of_replicas_changes_no_ranking(
    events: list[tuple[str, str, tuple[Caller, int, int]]], another: tuple[Caller, int, int]
) -> None:
    known, chosen = fleet(*IDS), dict[str, int]()
    images: dict[str, list[Sample[Any]]] = {id: [] for id in IDS}
    for number, (id, event, (caller, width, steps)) in enumerate(events):
        sample = image(str(number), steps=steps, width=width, caller=caller)
        assert rank(known, sample) == _by_definition(known, images, chosen, sample)
        images[id] = [*images[id], sample] if event != "empty" else []
        if event == "send":
            send(known, id, sample)
            chosen[id] = number + 1
        else:
            for repeat in range(4 if event == "empty" else 1):  # what was sent stays for a few
                report(known, id, 10 * number + 2 + repeat, *images[id])
    caller, width, steps = another
    sample = image("another", steps=steps, width=width, caller=caller)
    assert rank(known, sample) == _by_definition(known, images, chosen, sample)
