"""What turns cost: counted, measured and interpolated."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.capacity.cost_model import (
    CostModel,
    CostTable,
    TurnKind,
    clipped_mean,
    megapixel_steps,
    step_tflop,
    turn_kind,
)
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, WorkKind, share_by_rows
from tests.support.keys import lora, lora_key

SPEC = ImageSpec(prompt="a fox", seed=0, width=1024, height=1024, steps=30, guidance=5)


@pytest.mark.parametrize(
    ("stage", "side", "tflop"),
    [
        (Stage.BASE, 512, 1.59),
        (Stage.BASE, 768, 3.64),
        (Stage.BASE, 1024, 6.76),
        (Stage.BASE, 1280, 11.2),
        (Stage.BASE, 1536, 17.3),
        (Stage.REFINER, 512, 1.62),
        (Stage.REFINER, 1024, 7.29),
        (Stage.REFINER, 1536, 19.6),
    ],
)
def test_a_row_costs_what_the_block_structure_adds_up_to(
    stage: Stage, side: int, tflop: float
) -> None:
    assert step_tflop(stage, side, side, rows=1) == pytest.approx(tflop, rel=0.04)


def step(
    side: int, rows: int = 8, stage: Stage = Stage.BASE, extensions: tuple[str, ...] = ()
) -> TurnKind:
    return TurnKind(WorkKind.STEP, ModelKey(stage, "fox"), side, side, rows, extensions)


def test_a_turn_is_shared_by_rows() -> None:
    assert share_by_rows([2, 1, 1], 4.0) == [2, 1, 1]
    assert share_by_rows([2], 4.0) == [4]


@given(st.lists(st.integers(1, 2), min_size=1), st.floats(0, 1e6))
def test_the_shares_of_a_turn_add_up_to_its_seconds(rows: list[int], seconds: float) -> None:
    assert sum(share_by_rows(rows, seconds)) == pytest.approx(seconds)


def test_a_measured_turn_is_predicted_as_measured() -> None:
    costs = CostTable({step(64): 0.5, step(128): 0.7, step(64, extensions=("lora",)): 0.9})
    assert costs.seconds(step(64)) == 0.5
    assert costs.seconds(step(64, extensions=("lora",))) == 0.9


def test_other_turns_are_interpolated_and_beyond_that_in_proportion() -> None:
    costs = CostTable({step(512, 2): 1.0, step(512, 6): 5.0})
    assert costs.seconds(step(512, 4)) == pytest.approx(3)
    assert costs.seconds(step(512, 12)) == pytest.approx(10)
    assert costs.seconds(step(512, 1)) == pytest.approx(0.5)


def test_similar_turns_are_of_the_same_stage_else_work_else_steps() -> None:
    refiner = step(1024, 2, Stage.REFINER)
    decode = TurnKind(WorkKind.DECODE, ModelKey(Stage.BASE, "fox"), 1024, 1024)
    costs = CostTable({step(1024, 2): 13.52})
    assert costs.seconds(refiner) == pytest.approx(14.58)
    assert costs.seconds(decode) == pytest.approx(10.47)
    costs = CostTable({step(1024, 2): 13.52, step(512, 2, Stage.REFINER): 1.0, decode: 3.0})
    assert costs.seconds(refiner) == pytest.approx(14.58 / (2 * (6.12 / 4 + 1.17 / 16)))
    assert costs.seconds(replace(decode, model=ModelKey(Stage.BASE, "owl"), height=512)) == 1.5


def test_similar_turns_of_equal_tflop_count_by_their_mean() -> None:
    wide, high = (
        TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "fox"), *side, 8)
        for side in ((64, 128), (128, 64))
    )
    costs = CostTable({wide: 1.0, high: 2.0})
    assert costs.seconds(replace(wide, model=ModelKey(Stage.BASE, "owl"))) == 1.5


def test_the_cost_of_prompts_is_in_proportion_to_their_number() -> None:
    prompt = TurnKind(WorkKind.CONDITION, ModelKey(Stage.BASE, "fox"), rows=1)
    assert CostTable({prompt: 0.1}).seconds(replace(prompt, rows=2)) == pytest.approx(0.2)


def test_before_any_measurement_a_slow_machine_is_assumed() -> None:
    assert CostTable().seconds(step(1024, 1)) == pytest.approx(6.76)
    assert not CostTable().is_calibrated
    assert CostTable({step(64): 1.0}).is_calibrated


def test_a_load_is_free_until_one_was_measured() -> None:
    load = TurnKind(WorkKind.LOAD, ModelKey(Stage.BASE, "fox"))
    assert CostTable({step(64): 1.0}).seconds(load) == 0
    assert CostTable({load: 3.0}).seconds(replace(load, model=ModelKey(Stage.BASE, "owl"))) == 3


def test_an_unknown_model_has_the_batch_size_of_another() -> None:
    sizes = {
        ModelKey(Stage.BASE, "fox"): BatchSize(4, (8,)),
        ModelKey(Stage.BASE, "owl"): BatchSize(2, (4,)),
    }
    assert CostTable(batch_sizes=sizes).batch_size(ModelKey(Stage.BASE, "owl")) == BatchSize(
        2, (4,)
    )
    assert CostTable(batch_sizes=sizes).batch_size(ModelKey(Stage.BASE, "ink")) == BatchSize(
        4, (8,)
    )
    assert CostTable().batch_size(ModelKey(Stage.BASE, "ink")) == BatchSize(1)


def test_one_slow_turn_does_not_spoil_the_mean() -> None:
    assert clipped_mean([1.0, 3.0]) == 1.25
    assert clipped_mean([1.0] * 9 + [100.0]) == pytest.approx(1.05)
    assert clipped_mean([0.8, 1.2]) == 1.0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_the_clipped_mean_is_at_most_one_and_a_half_times_the_median(seen: list[float]) -> None:
    assert min(seen) - 1e-6 <= clipped_mean(seen) <= 1.5 * sorted(seen)[(len(seen) - 1) // 2] + 1e-6


def test_a_cost_model_follows_a_machine_that_becomes_slower() -> None:
    model = CostModel()
    for seconds in [1.0] * 50 + [2.0] * 24:
        model.observe(step(64), seconds)
    assert model.table.seconds(step(64)) == 2


def test_a_cost_model_forgets_the_kinds_measured_least_recently() -> None:
    model = CostModel()
    for side in range(1, 65):
        model.observe(step(8 * side), 1.0)
    model.observe(step(16), 1.0)
    model.observe(step(8 * 65), 1.0)
    model.observe(step(8 * 66), 1.0)
    known = model.table.seconds_by_turn
    assert len(known) == 64
    assert [step(side) in known for side in (8, 16, 24, 32)] == [False, True, False, True]


def test_a_cost_model_remembers_the_batch_sizes_of_unloaded_models() -> None:
    model = CostModel()
    model.set_batch_sizes({ModelKey(Stage.BASE, "fox"): BatchSize(4, (8,))})
    model.set_batch_sizes({ModelKey(Stage.BASE, "owl"): BatchSize(2, (4,))})
    assert model.table.batch_size(ModelKey(Stage.BASE, "fox")) == BatchSize(4, (8,))


@pytest.mark.parametrize(
    ("work", "turn"),
    [
        (WorkKind.LOAD, TurnKind(WorkKind.LOAD, ModelKey(Stage.BASE, "fox"))),
        (
            WorkKind.ATTACH,
            TurnKind(WorkKind.ATTACH, ModelKey(Stage.BASE, "fox"), attached=lora_key("new")),
        ),
        (WorkKind.CONDITION, TurnKind(WorkKind.CONDITION, ModelKey(Stage.BASE, "fox"), rows=2)),
        (WorkKind.ENCODE, TurnKind(WorkKind.ENCODE, ModelKey(Stage.BASE, "fox"), 1024, 1024)),
        (
            WorkKind.STEP,
            TurnKind(WorkKind.STEP, ModelKey(Stage.BASE, "fox"), 1024, 1024, 8, ("lora",)),
        ),
        (WorkKind.DECODE, TurnKind(WorkKind.DECODE, ModelKey(Stage.BASE, "fox"), 1024, 1024)),
    ],
)
def test_the_kind_of_a_turn_is_all_that_decides_its_length(work: WorkKind, turn: TurnKind) -> None:
    spec = replace(SPEC, model="fox", extensions=(lora("ink"), lora("none", 0.0)))
    schedule = make_schedule(NoiseConfig(), spec.sampler, 30, None, 1.0)
    sample: Sample[float] = new_sample("a", spec, schedule, Stage.BASE)
    assert turn_kind(work, sample, lanes=8, load=lora_key("new")) == turn


def test_the_rate_limit_counts_megapixels_and_the_steps_that_are_taken() -> None:
    spec = ImageSpec(prompt="a", seed=0, width=1000, height=2000, steps=30, guidance=5)
    assert megapixel_steps(spec) == 60
    assert megapixel_steps(replace(spec, strength=0.5)) == 30
    assert megapixel_steps(replace(spec, strength=0.01)) == 2


def test_a_step_of_heun_counts_twice_against_the_rate_limit() -> None:
    heun = replace(SPEC, sampler=Sampler.HEUN)
    assert megapixel_steps(heun) == 2 * megapixel_steps(SPEC)


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "rows"),
    [
        ("a fox", None, 1.0, 1),
        ("a fox", "blur", 5.0, 2),
        ("a [fox:cat:0.5]", None, 1.0, 2),
        ("a [fox|cat|owl|cat]", "[blur::0.5]", 5.0, 5),
    ],
)
def test_a_prompt_that_changes_is_encoded_once_for_each_of_its_texts(
    prompt: str, negative: str | None, guidance: float, rows: int
) -> None:
    spec = replace(SPEC, prompt=prompt, negative_prompt=negative, guidance=guidance)
    schedule = make_schedule(NoiseConfig(), spec.sampler, spec.steps, None, 1.0)
    sample: Sample[float] = new_sample("a", spec, schedule, Stage.BASE)
    assert turn_kind(WorkKind.CONDITION, sample).rows == rows
