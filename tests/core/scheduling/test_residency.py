"""Models that come and go: who waits for one, what is loaded next, and what must leave for it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment, for_stage, with_model
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.residency import Admission, admit
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind
from tests.support.keys import REFINER, base_key, lora, lora_key
from tests.support.scheduler_runs import next_plan, run_plan, sample, whole_segment

Turn = tuple[Plan[float], tuple[str, ...]]


def of(model: str, id: str, steps: int = 4, loras: str = "") -> Sample[float]:
    """A sample of a model with LoRAs of one letter."""
    queued = with_model(sample(id, steps), base_key(model))
    return replace(queued, spec=replace(queued.spec, extensions=tuple(map(lora, loras))))


class Replica:
    """A scheduler and a pretended memory for so many models, and what was ever seen of both."""

    def __init__(
        self,
        room: int,
        *,
        images: int = 2,
        broken: str | None = None,
        sizes: dict[str, BatchSize] | None = None,
        lora_room: int = 2,
    ) -> None:
        self.room, self.lora_room, self.broken = room, lora_room, broken
        self.resident = [base_key("a")]
        self.worn: dict[ModelKey, list[ExtensionKey]] = {
            base_key("a"): []
        }  # LoRAs attached to each model
        self.sizes = sizes or {}  # of models that are not as the others
        self._usual = BatchSize(images, 2 * images)
        self.scheduler: StepScheduler[float] = StepScheduler(
            self._batches(), model_capacity=room, extension_capacity=lora_room
        )
        self.loads: list[str] = []  # models, and LoRAs as "model+lora"

    def add(self, queued: Sample[float]) -> None:
        self.scheduler.add(queued, whole_segment(queued))

    def turns(self) -> Iterator[Turn]:
        while (plan := next_plan(self.scheduler)) is not None:
            models = {queued.model_key for queued in plan.samples}
            assert len(models) == 1, "a batch mixes models"
            if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
                (self._load if plan.work is WorkKind.LOAD else self._attach)(plan, *models)
                if self._is_broken(plan.load):
                    for queued in plan.samples:
                        self.scheduler.cancel(queued.id)
                    self.scheduler.settle(plan, ())
                    yield plan, ()
                    continue
                yield plan, self._ids(self.scheduler.settle(plan, plan.samples))
            else:
                assert models <= set(self.resident), "a model that is not here works"
                sets = {queued.active_extensions for queued in plan.samples}
                assert len(sets) == 1, "a batch mixes LoRAs"
                if plan.work is not WorkKind.DECODE:
                    worn = self.worn[plan.samples[0].model_key]
                    assert {ref.key for ref in sets.pop()} <= set(worn), "a LoRA is not there"
                yield plan, self._ids(self.scheduler.settle(plan, run_plan(plan)))

    def _is_broken(self, load: ModelKey | ExtensionKey | None) -> bool:
        return load is not None and load.name == self.broken

    def _attach(self, plan: Plan[float], model: ModelKey) -> None:
        worn = self.worn[model]
        for evicted in plan.evict:
            assert isinstance(evicted, ExtensionKey)
            worn.remove(evicted)
        if not self._is_broken(plan.load):
            assert isinstance(plan.load, ExtensionKey)
            worn.append(plan.load)
        most = max(len(queued.active_extensions) for queued in self.scheduler.samples())
        assert len(worn) <= max(self.lora_room, most)
        self.loads.append(f"{model}+{plan.load.name if plan.load else None}")
        self.scheduler.set_resident(self._batches(), self.worn)

    def _load(self, plan: Plan[float], model: ModelKey) -> None:
        assert plan.load == model
        for evicted in plan.evict:
            assert isinstance(evicted, ModelKey)
            running = (queued for queued in self.scheduler.samples() if queued.latents is not None)
            under_way = {queued.model_key for queued in running}
            assert evicted not in under_way, "a model goes whose samples are under way"
            self.resident.remove(evicted)
            del self.worn[evicted]
        if not self._is_broken(model):
            self.resident.append(model)
            self.worn[model] = []
        assert len(self.resident) <= self.room
        self.loads.append(str(model))
        self.scheduler.set_resident(self._batches(), self.worn)

    def _batches(self) -> dict[ModelKey, BatchSize]:
        return {key: self.sizes.get(str(key), self._usual) for key in self.resident}

    @staticmethod
    def _ids(done: tuple[Sample[float], ...]) -> tuple[str, ...]:
        return tuple(queued.id for queued in done)


def test_a_model_is_loaded_once_for_all_that_wait_for_it() -> None:
    replica = Replica(2)
    for queued in (of("a", "1"), of("b", "2"), of("b", "3")):
        replica.add(queued)
    turns = list(replica.turns())
    loads = [plan for plan, _ in turns if plan.work is WorkKind.LOAD]
    assert [(plan.evict, {s.id for s in plan.samples}) for plan in loads] == [((), {"2", "3"})]
    steps = [{s.id for s in plan.samples} for plan, _ in turns if plan.work is WorkKind.STEP]
    assert {"2", "3"} in steps
    assert (
        repr(replica.scheduler)
        == "<StepScheduler 0 waiting | 0 stepping in 0 batch keys | 0 decoding>"
    )


def test_a_step_of_others_goes_between_a_prompt_and_a_load() -> None:
    replica = Replica(2)
    replica.add(of("a", "1"))
    running = replica.turns()
    seen = [next(running)[0].work for _ in range(2)]
    replica.add(of("b", "2"))
    seen += [next(running)[0].work for _ in range(4)]
    assert seen == [
        WorkKind.CONDITION,
        WorkKind.STEP,
        WorkKind.LOAD,
        WorkKind.CONDITION,
        WorkKind.STEP,
        WorkKind.STEP,
    ]


def test_the_model_longest_without_a_newcomer_goes_and_never_one_at_work() -> None:
    replica = Replica(2)
    for queued in (of("a", "1"), of("b", "2")):
        replica.add(queued)
    list(replica.turns())
    for queued in (of("b", "3", 20), of("c", "4", 20)):
        replica.add(queued)
    drops = [plan.evict for plan, _ in replica.turns() if plan.work is WorkKind.LOAD]
    assert (drops, set(replica.resident)) == ([(base_key("a"),)], {base_key("b"), base_key("c")})


@pytest.mark.parametrize("room", [1, 2])
def test_a_crowd_for_the_models_that_are_here_does_not_keep_another_away(room: int) -> None:
    replica = Replica(room)
    crowd = ["a", "b"][:room]
    for number, model in enumerate(crowd):
        replica.add(of(model, f"first {number}", 12))
    replica.add(of("c", "rare", 4))
    steps = 0
    for plan, done in replica.turns():
        if "rare" in done:
            break
        if (
            plan.work is WorkKind.STEP
        ):  # more than there is room for: twelve steps for each one taken
            steps += 1
            assert steps < 100, "the rare one starves"
            for model in crowd:
                replica.add(of(model, f"{steps} {model}", 12))


def test_a_model_that_can_not_be_loaded_ends_only_those_that_wanted_it() -> None:
    replica = Replica(1, broken="c")
    for queued in (of("a", "1"), of("c", "2"), of("c", "3"), of("b", "4"), of("a", "5")):
        replica.add(queued)
    ended = [id for _, done in replica.turns() for id in done]
    assert sorted(ended) == ["1", "4", "5"]
    assert len(replica.scheduler) == 0


def test_who_waits_may_leave_and_the_others_then_need_not_make_room() -> None:
    replica = Replica(1)
    replica.add(of("a", "1", 20))
    running = replica.turns()
    for _ in range(4):
        next(running)
    replica.add(of("b", "2"))
    replica.add(of("a", "3"))
    assert {s.id for s in next(running)[0].samples} == {"1"}  # the newcomer of a stands behind b
    assert replica.scheduler.cancel("2")
    works = [plan.work for plan, _ in running]
    assert WorkKind.LOAD not in works


def test_there_must_be_room_for_a_model() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        StepScheduler({ModelKey(Stage.BASE): BatchSize(1, 2)}, model_capacity=0)


def test_a_lora_is_attached_once_for_all_that_wait_for_it_and_batches_never_mix() -> None:
    replica = Replica(1, images=4)
    for number, loras in enumerate(["", "x", "y", "x", "", "xy", "y", "yx"]):
        replica.add(of("a", str(number), loras=loras))
    turns = [plan for plan, _ in replica.turns()]
    attached = [
        (p.load, p.evict, {s.id for s in p.samples}) for p in turns if p.work is WorkKind.ATTACH
    ]
    x, y = lora_key("x"), lora_key("y")
    assert attached == [(x, (), {"1", "3", "5", "7"}), (y, (), {"2", "6", "5", "7"})]
    batches = {frozenset(s.id for s in p.samples) for p in turns if p.work is WorkKind.STEP}
    assert batches >= {frozenset(pair) for pair in ("04", "13", "26", "57")}


def test_the_lora_longest_without_a_newcomer_goes_and_never_one_that_is_worn() -> None:
    replica = Replica(1, lora_room=2)
    for id, loras in (("1", "x"), ("2", "y")):
        replica.add(of("a", id, loras=loras))
    list(replica.turns())
    for id, loras in (("3", "y"), ("4", "z")):
        replica.add(of("a", id, 20, loras))
    drops = [plan.evict for plan, _ in replica.turns() if plan.work is WorkKind.ATTACH]
    assert drops == [(lora_key("x"),)]
    assert replica.worn == {base_key("a"): [lora_key("y"), lora_key("z")]}


def test_a_model_that_leaves_takes_its_loras_along() -> None:
    replica = Replica(1)
    for id, model in (("1", "a"), ("2", "b"), ("3", "a")):
        replica.add(of(model, id, loras="x"))
    list(replica.turns())
    assert replica.loads == ["a+x", "b", "b+x", "a", "a+x"]


def test_a_crowd_for_the_loras_that_are_there_does_not_keep_another_away() -> None:
    replica = Replica(1, lora_room=1)
    replica.add(of("a", "first", 12, "x"))
    replica.add(of("a", "rare", 4, "y"))
    steps = 0
    for plan, done in replica.turns():
        if "rare" in done:
            break
        if plan.work is WorkKind.STEP:
            steps += 1
            assert steps < 100, "the rare one starves"
            replica.add(of("a", str(steps), 12, "x"))


def test_a_lora_that_can_not_be_attached_ends_only_those_that_wanted_it() -> None:
    replica = Replica(1, broken="z")
    for number, loras in enumerate(["z", "x", "", "xz", "y"]):
        replica.add(of("a", str(number), loras=loras))
    ended = [id for _, done in replica.turns() for id in done]
    assert sorted(ended) == ["1", "2", "4"]


def test_a_picture_that_only_waits_for_its_decoding_waits_for_no_lora() -> None:
    replica = Replica(1)
    done = replace(of("a", "done", loras="x"), latents=0.0)
    replica.scheduler.add(replace(done, index=len(done.schedule)), whole_segment(done))
    assert [plan.work for plan, _ in replica.turns()] == [WorkKind.DECODE]


LORAS = st.sampled_from(["", "", "x", "y", "z", "xy", "zx"])
ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 6), LORAS, st.integers(0, 5)), max_size=25
)


@settings(deadline=None)
@given(room=st.integers(1, 3), lora_room=st.integers(1, 3), arrivals=ARRIVALS)
def test_whoever_comes_for_whichever_model_and_loras_is_served(
    room: int, lora_room: int, arrivals: list[tuple[str, int, str, int]]
) -> None:
    replica, done = Replica(room, lora_room=lora_room), list[str]()
    for number, (model, steps, loras, pause) in enumerate(arrivals):
        replica.add(of(model, str(number), steps, loras))
        for _, (_, ended) in zip(range(pause), replica.turns(), strict=False):
            done += ended
    for _, ended in replica.turns():
        done += ended
    assert sorted(done, key=int) == [str(number) for number in range(len(arrivals))]
    assert len(replica.loads) <= sum(1 + len(loras) for _, _, loras, _ in arrivals)


def test_seats_are_given_in_order_of_arrival() -> None:
    waiting = [("1", ["a"]), ("2", ["c"]), ("3", ["a"]), ("4", ["b"]), ("5", ["d"])]
    assert admit(waiting, ["a", "b"], {"a", "b"}, 2) == Admission(("1", "4"))
    assert admit(waiting, ["a", "b"], set(), 2) == Admission(("1", "3"), "c", ("b",))
    assert admit(waiting, ["a", "b"], {"b"}, 3) == Admission(("1", "3", "4"), "c")
    assert admit([], ["a"], set(), 1) == Admission(())


def test_who_needs_several_gets_one_after_another_and_keeps_what_is_there() -> None:
    waiting = [("1", ["a", "c"]), ("2", ["b"]), ("3", ["a"])]
    assert admit(waiting, ["a", "b"], {"b"}, 2) == Admission(("3",))  # b is to end
    assert admit(waiting, ["a", "b"], set(), 2) == Admission(("3",), "c", ("b",))
    assert admit(waiting, ["a", "b"], set(), 3) == Admission(("2", "3"), "c")
    assert admit([("1", "abc")], ["a", "b"], {"a"}, 2) == Admission((), "c")  # more than the room
    assert admit([("1", "d")], ["a", "b", "c"], {"b"}, 2) == Admission((), "d", ("a", "c"))


def test_a_step_is_of_one_model_however_many_may_step_together() -> None:
    replica = Replica(2, images=4)
    for queued in (of("a", "1"), of("b", "2"), of("a", "3"), of("b", "4")):
        replica.add(replace(queued, chunks=1))
    batches = [
        {str(s.model_key) for s in plan.samples}
        for plan, _ in replica.turns()
        if plan.work is WorkKind.STEP
    ]
    assert {"a"} in batches
    assert {"b"} in batches


def test_each_model_steps_as_many_in_as_many_lanes_as_it_was_fitted_for() -> None:
    replica = Replica(3, images=4, sizes={"b": BatchSize(1, 2), "c": BatchSize(2, 0)})
    for number in range(3):
        for model in "abc":
            replica.add(of(model, f"{model}{number}"))
    steps = [plan for plan, _ in replica.turns() if plan.work is WorkKind.STEP]
    seen = {model: set[tuple[int, int]]() for model in "abc"}
    for plan in steps:
        seen[str(plan.samples[0].model_key)].add((len(plan.samples), plan.lanes))
    assert max(seen["a"]) == (3, 8)
    assert seen["b"] == {(1, 2)}
    assert max(seen["c"]) == (2, 4)
    assert {lanes for _, lanes in seen["a"]} == {8}


def test_a_model_that_comes_again_with_less_room_steps_fewer() -> None:
    replica = Replica(1, images=4)
    for number in range(4):
        replica.add(of("a", str(number)))
    assert max(len(p.samples) for p, _ in replica.turns() if p.work is WorkKind.STEP) == 4
    replica.add(of("b", "other"))
    list(replica.turns())
    replica.sizes["a"] = BatchSize(2, 4)
    for number in range(4):
        replica.add(of("a", str(number)))
    again = [plan for plan, _ in replica.turns() if plan.work is WorkKind.STEP]
    assert {(len(plan.samples), plan.lanes) for plan in again} == {(2, 4)}


def test_a_picture_that_is_done_is_handed_out_before_a_model_is_loaded() -> None:
    replica = Replica(2)
    replica.add(of("a", "done", steps=1))
    works = []
    for plan, _ in replica.turns():
        works.append(plan.work)
        if plan.work is WorkKind.STEP and "other" not in replica.scheduler and len(works) < 4:
            replica.add(of("b", "other", steps=1))
    assert works[:4] == [WorkKind.CONDITION, WorkKind.STEP, WorkKind.DECODE, WorkKind.LOAD]


def test_a_crowd_of_finished_pictures_does_not_keep_a_model_from_being_loaded() -> None:
    replica = Replica(2, images=4)
    for number in range(8):
        replica.add(of("a", f"done {number}", steps=1))
    replica.add(of("b", "other", steps=1))
    works = [
        plan.work for plan, _ in replica.turns() if plan.work in (WorkKind.DECODE, WorkKind.LOAD)
    ]
    assert works.index(WorkKind.LOAD) == 1
    assert works.count(WorkKind.DECODE) == 9


@pytest.mark.parametrize("pause", [1, 2, 4])
def test_base_and_refiner_in_turn_serve_whoever_waits_however_many_come(pause: int) -> None:
    """A newcomer every `pause` steps, whom the refiner continues. With room for one model, whoever
    waits for the other is served at the next change, all at once, and the waits do not grow."""
    replica, born, took = Replica(1, images=4, broken="none"), list[int](), list[int]()
    steps = 0

    def come() -> None:
        replica.scheduler.add(of("a", str(len(born))), StageSegment(Stage.BASE, 3, last=False))
        born.append(steps)

    come()
    for plan, done in replica.turns():
        (resident,) = replica.resident
        for id in done:
            if resident.stage is Stage.BASE:
                base = replace(of("a", id), index=3, latents=1.0)
                leg = StageSegment(Stage.REFINER, 4, last=True)
                refined = with_model(for_stage(base, Stage.REFINER), REFINER)
                replica.scheduler.add(refined, leg)
            else:
                took.append(steps - born[int(id)])
        if plan.work is WorkKind.LOAD:
            waiting = {
                queued.id for queued in replica.scheduler.samples() if queued.model_key == resident
            }
            assert {queued.id for queued in plan.samples} == waiting, (
                "a change leaves somebody behind"
            )
        if plan.work is WorkKind.STEP:
            steps += 1
            if steps % pause == 0 and len(born) < 200:
                come()
    assert len(took) == len(born) == 200
    assert replica.loads == (["refiner", "a"] * len(replica.loads))[: len(replica.loads)]
    assert max(took) <= 12
