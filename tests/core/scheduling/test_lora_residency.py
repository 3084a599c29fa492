"""LoRAs: which samples wait for one, what is attached next, and what leaves."""

from dataclasses import replace

from serve_app.core.scheduling.work import WorkKind
from tests.support.keys import base_key, lora_key
from tests.support.residency_replica import Replica, model_sample
from tests.support.scheduler_runs import whole_segment


def test_a_lora_is_attached_once_for_all_that_wait_for_it_and_batches_never_mix() -> None:
    replica = Replica(1, images=4)
    for number, loras in enumerate(["", "x", "y", "x", "", "xy", "y", "yx"]):
        replica.add(model_sample("a", str(number), loras=loras))
    turns = [plan for plan, _ in replica.turns()]
    attached = [
        (p.load, p.evict, {s.id for s in p.samples}) for p in turns if p.work is WorkKind.ATTACH
    ]
    x, y = lora_key("x"), lora_key("y")
    assert attached == [(x, (), {"1", "3", "5", "7"}), (y, (), {"2", "6", "5", "7"})]
    batches = {frozenset(s.id for s in p.samples) for p in turns if p.work is WorkKind.STEP}
    assert batches >= {frozenset(pair) for pair in ("04", "13", "26", "57")}


def test_the_lora_longest_without_a_newcomer_is_evicted_and_never_one_in_use() -> None:
    replica = Replica(1, lora_capacity=2)
    for id, loras in (("1", "x"), ("2", "y")):
        replica.add(model_sample("a", id, loras=loras))
    list(replica.turns())
    for id, loras in (("3", "y"), ("4", "z")):
        replica.add(model_sample("a", id, 20, loras))
    drops = [plan.evict for plan, _ in replica.turns() if plan.work is WorkKind.ATTACH]
    assert drops == [(lora_key("x"),)]
    assert replica.attached == {base_key("a"): [lora_key("y"), lora_key("z")]}


def test_a_model_that_is_evicted_takes_its_loras_along() -> None:
    replica = Replica(1)
    for id, model in (("1", "a"), ("2", "b"), ("3", "a")):
        replica.add(model_sample(model, id, loras="x"))
    list(replica.turns())
    assert replica.loads == ["a+x", "b", "b+x", "a", "a+x"]


def test_a_stream_of_samples_for_attached_loras_does_not_starve_another() -> None:
    replica = Replica(1, lora_capacity=1)
    replica.add(model_sample("a", "first", 12, "x"))
    replica.add(model_sample("a", "rare", 4, "y"))
    steps = 0
    for plan, done in replica.turns():
        if "rare" in done:
            break
        if plan.work is WorkKind.STEP:
            steps += 1
            assert steps < 100, "the rare one starves"
            replica.add(model_sample("a", str(steps), 12, "x"))


def test_a_lora_that_fails_to_attach_ends_only_its_own_samples() -> None:
    replica = Replica(1, broken="z")
    for number, loras in enumerate(["z", "x", "", "xz", "y"]):
        replica.add(model_sample("a", str(number), loras=loras))
    ended = [id for _, done in replica.turns() for id in done]
    assert sorted(ended) == ["1", "2", "4"]


def test_a_sample_that_is_only_to_be_decoded_waits_for_no_lora() -> None:
    replica = Replica(1)
    done = replace(model_sample("a", "done", loras="x"), latents=0.0)
    replica.scheduler.add(replace(done, index=len(done.schedule)), whole_segment(done))
    assert [plan.work for plan, _ in replica.turns()] == [WorkKind.DECODE]
