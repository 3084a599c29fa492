"""Loading and eviction: which samples wait for a model, what is loaded next, what is evicted."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, with_model
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.residency import Admission, admit
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, WorkKind
from tests.support.keys import REFINER, base_key
from tests.support.residency_replica import Replica, model_sample


def test_a_model_is_loaded_once_for_all_that_wait_for_it() -> None:
    replica = Replica(2)
    for arrival in (model_sample("a", "1"), model_sample("b", "2"), model_sample("b", "3")):
        replica.add(arrival)
    turns = list(replica.turns())
    loads = [plan for plan, _ in turns if plan.work is WorkKind.LOAD]
    assert [(plan.evict, {s.id for s in plan.samples}) for plan in loads] == [((), {"2", "3"})]
    steps = [{s.id for s in plan.samples} for plan, _ in turns if plan.work is WorkKind.STEP]
    assert {"2", "3"} in steps
    assert (
        repr(replica.scheduler)
        == "<StepScheduler 0 waiting | 0 stepping in 0 batch keys | 0 decoding | 0 callers>"
    )


def test_a_step_of_others_goes_between_a_prompt_and_a_load() -> None:
    replica = Replica(2)
    replica.add(model_sample("a", "1"))
    running = replica.turns()
    seen = [next(running)[0].work for _ in range(2)]
    replica.add(model_sample("b", "2"))
    seen += [next(running)[0].work for _ in range(4)]
    assert seen == [
        WorkKind.CONDITION,
        WorkKind.STEP,
        WorkKind.LOAD,
        WorkKind.CONDITION,
        WorkKind.STEP,
        WorkKind.STEP,
    ]


def test_the_model_longest_without_a_newcomer_is_evicted_and_never_one_in_use() -> None:
    replica = Replica(2)
    for arrival in (model_sample("a", "1"), model_sample("b", "2")):
        replica.add(arrival)
    list(replica.turns())
    for arrival in (model_sample("b", "3", 20), model_sample("c", "4", 20)):
        replica.add(arrival)
    drops = [plan.evict for plan, _ in replica.turns() if plan.work is WorkKind.LOAD]
    assert (drops, set(replica.resident)) == ([(base_key("a"),)], {base_key("b"), base_key("c")})


@pytest.mark.parametrize("capacity", [1, 2])
def test_a_stream_of_samples_for_resident_models_does_not_starve_another(capacity: int) -> None:
    replica = Replica(capacity)
    models = ["a", "b"][:capacity]
    for number, model in enumerate(models):
        replica.add(model_sample(model, f"first {number}", 12))
    replica.add(model_sample("c", "rare", 4))
    steps = 0
    for plan, done in replica.turns():
        if "rare" in done:
            break
        if plan.work is WorkKind.STEP:
            steps += 1  # more arrivals than can be served: twelve steps for each step taken
            assert steps < 100, "the rare one starves"
            for model in models:
                replica.add(model_sample(model, f"{steps} {model}", 12))


def test_a_model_that_fails_to_load_ends_only_its_own_samples() -> None:
    replica = Replica(1, broken="c")
    for arrival in (
        model_sample("a", "1"),
        model_sample("c", "2"),
        model_sample("c", "3"),
        model_sample("b", "4"),
        model_sample("a", "5"),
    ):
        replica.add(arrival)
    ended = [id for _, done in replica.turns() for id in done]
    assert sorted(ended) == ["1", "4", "5"]
    assert len(replica.scheduler) == 0


def test_when_a_waiting_sample_is_cancelled_nothing_is_evicted_for_it() -> None:
    replica = Replica(1)
    replica.add(model_sample("a", "1", 20))
    running = replica.turns()
    for _ in range(4):
        next(running)
    replica.add(model_sample("b", "2"))
    replica.add(model_sample("a", "3"))
    assert {s.id for s in next(running)[0].samples} == {"1"}  # the new sample of a waits behind b
    assert replica.scheduler.cancel("2")
    works = [plan.work for plan, _ in running]
    assert WorkKind.LOAD not in works


def test_a_capacity_below_one_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        StepScheduler({ModelKey(Stage.BASE): BatchSize(1, (2,))}, model_capacity=0)


LORAS = st.sampled_from(["", "", "x", "y", "z", "xy", "zx"])
ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 6), LORAS, st.integers(0, 5)), max_size=25
)


@settings(deadline=None)
@given(capacity=st.integers(1, 3), lora_capacity=st.integers(1, 3), arrivals=ARRIVALS)
def test_every_arrival_is_served_for_any_model_and_loras(
    capacity: int, lora_capacity: int, arrivals: list[tuple[str, int, str, int]]
) -> None:
    replica, done = Replica(capacity, lora_capacity=lora_capacity), list[str]()
    for number, (model, steps, loras, pause) in enumerate(arrivals):
        replica.add(model_sample(model, str(number), steps, loras))
        for _, (_, ended) in zip(range(pause), replica.turns(), strict=False):
            done += ended
    for _, ended in replica.turns():
        done += ended
    assert sorted(done, key=int) == [str(number) for number in range(len(arrivals))]
    assert len(replica.loads) <= sum(1 + len(loras) for _, _, loras, _ in arrivals)


def test_capacity_is_given_in_order_of_arrival() -> None:
    waiting = [("1", ["a"]), ("2", ["c"]), ("3", ["a"]), ("4", ["b"]), ("5", ["d"])]
    assert admit(waiting, ["a", "b"], {"a", "b"}, 2) == Admission(("1", "4"))
    assert admit(waiting, ["a", "b"], set(), 2) == Admission(("1", "3"), "c", ("b",))
    assert admit(waiting, ["a", "b"], {"b"}, 3) == Admission(("1", "3", "4"), "c")
    assert admit([], ["a"], set(), 1) == Admission(())


def test_a_sample_that_needs_several_gets_them_in_turn_and_keeps_the_resident_ones() -> None:
    waiting = [("1", ["a", "c"]), ("2", ["b"]), ("3", ["a"])]
    assert admit(waiting, ["a", "b"], {"b"}, 2) == Admission(("3",))  # b is to end
    assert admit(waiting, ["a", "b"], set(), 2) == Admission(("3",), "c", ("b",))
    assert admit(waiting, ["a", "b"], set(), 3) == Admission(("2", "3"), "c")
    assert admit([("1", "abc")], ["a", "b"], {"a"}, 2) == Admission((), "c")  # over the capacity
    assert admit([("1", "d")], ["a", "b", "c"], {"b"}, 2) == Admission((), "d", ("a", "c"))


def test_a_step_is_of_one_model_however_many_may_step_together() -> None:
    replica = Replica(2, images=4)
    for arrival in (
        model_sample("a", "1"),
        model_sample("b", "2"),
        model_sample("a", "3"),
        model_sample("b", "4"),
    ):
        replica.add(replace(arrival, chunks=1))
    batches = [
        {str(s.model_key) for s in plan.samples}
        for plan, _ in replica.turns()
        if plan.work is WorkKind.STEP
    ]
    assert {"a"} in batches
    assert {"b"} in batches


def test_each_model_keeps_the_images_and_lanes_of_its_memory_plan() -> None:
    replica = Replica(3, images=4, sizes={"b": BatchSize(1, (2,)), "c": BatchSize(2)})
    for number in range(3):
        for model in "abc":
            replica.add(model_sample(model, f"{model}{number}"))
    steps = [plan for plan, _ in replica.turns() if plan.work is WorkKind.STEP]
    seen = {model: set[tuple[int, int]]() for model in "abc"}
    for plan in steps:
        seen[str(plan.samples[0].model_key)].add((len(plan.samples), plan.lanes))
    assert max(seen["a"]) == (3, 8)
    assert seen["b"] == {(1, 2)}
    assert max(seen["c"]) == (2, 4)
    assert {lanes for _, lanes in seen["a"]} == {8}


def test_a_model_reloaded_with_less_memory_steps_fewer_images() -> None:
    replica = Replica(1, images=4)
    for number in range(4):
        replica.add(model_sample("a", str(number)))
    assert max(len(p.samples) for p, _ in replica.turns() if p.work is WorkKind.STEP) == 4
    replica.add(model_sample("b", "other"))
    list(replica.turns())
    replica.sizes["a"] = BatchSize(2, (4,))
    for number in range(4):
        replica.add(model_sample("a", str(number)))
    again = [plan for plan, _ in replica.turns() if plan.work is WorkKind.STEP]
    assert {(len(plan.samples), plan.lanes) for plan in again} == {(2, 4)}


def test_a_finished_image_is_decoded_before_a_model_is_loaded() -> None:
    replica = Replica(2)
    replica.add(model_sample("a", "done", steps=1))
    works = []
    for plan, _ in replica.turns():
        works.append(plan.work)
        if plan.work is WorkKind.STEP and "other" not in replica.scheduler and len(works) < 4:
            replica.add(model_sample("b", "other", steps=1))
    assert works[:4] == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.DECODE, WorkKind.LOAD]


def test_a_stream_of_finished_images_does_not_keep_a_model_from_being_loaded() -> None:
    replica = Replica(2, images=4)
    for number in range(8):
        replica.add(model_sample("a", f"done {number}", steps=1))
    replica.add(model_sample("b", "other", steps=1))
    works = [
        plan.work for plan, _ in replica.turns() if plan.work in (WorkKind.DECODE, WorkKind.LOAD)
    ]
    assert works.index(WorkKind.LOAD) == 1
    assert works.count(WorkKind.DECODE) == 9


@pytest.mark.parametrize("pause", [1, 2, 4])
def test_base_and_refiner_alternate_and_serve_every_image_that_waits(pause: int) -> None:
    """A newcomer arrives every `pause` steps, and the refiner continues it. With a capacity of one
    model, all samples that wait for the other are served together at the next change, and the
    waits do not grow."""
    replica, born, took = Replica(1, images=4, broken="none"), list[int](), list[int]()
    steps = 0

    def arrive() -> None:
        replica.scheduler.add(
            model_sample("a", str(len(born))), StageSegment(Stage.BASE, 3, last=False)
        )
        born.append(steps)

    arrive()
    for plan, done in replica.turns():
        (resident,) = replica.resident
        for id in done:
            if resident.stage is Stage.BASE:
                base = replace(model_sample("a", id), index=3, latents=1.0)
                segment = StageSegment(Stage.REFINER, 4, last=True)
                refined = with_model(for_stage(base, Stage.REFINER), REFINER)
                replica.scheduler.add(refined, segment)
            else:
                took.append(steps - born[int(id)])
        if plan.work is WorkKind.LOAD:
            waiting = {
                sample.id for sample in replica.scheduler.samples() if sample.model_key == resident
            }
            assert {sample.id for sample in plan.samples} == waiting, (
                "a change leaves a sample behind"
            )
        if plan.work is WorkKind.STEP:
            steps += 1
            if steps % pause == 0 and len(born) < 200:
                arrive()
    assert len(took) == len(born) == 200
    assert replica.loads == (["refiner", "a"] * len(replica.loads))[: len(replica.loads)]
    assert max(took) <= 12
