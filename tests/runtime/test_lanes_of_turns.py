"""The rows of an engine's UNet calls, where several numbers of them keep a sample's bits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.core.capacity.cost_model import turn_kind
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import EngineFault
from serve_app.core.scheduling.work import WorkKind
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.engine_runs import Heard, drain, sample_of
from tests.support.waiting import until

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
END = StageSegment(Stage.BASE, 10, last=True)
COUNTS = (2, 4, 8)
PROOF_OF_2 = [(2, 2), (2, 2), (8, 8)]  # samples and lanes of its calls
PROOF_OF_4 = [(4, 4), (4, 4), (8, 8)]


class Clock:
    """Seconds that pass only in calls of the network."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowDenoiser(ConstantDenoiser):
    """A call takes a second for each of its lanes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self.clock.now += lanes
        return super().__call__(x, inputs, lanes)


def engine_of(denoiser: ConstantDenoiser, clock: Clock, records: list[StepRecord]) -> Engine:
    model = analytic_model(denoiser, lane_counts=COUNTS)
    return Engine(ModelCache.of(model), snapshot_every=99, clock=clock, on_step=records.append)


def test_an_image_steps_in_few_lanes_alone_and_in_more_while_it_has_company() -> None:
    clock, records = Clock(), list[StepRecord]()
    denoiser = SlowDenoiser(clock)
    engine = engine_of(denoiser, clock, records)
    engine.submit(sample_of(SPEC, "long"), END, Heard())
    for _ in range(4):
        engine.turn()
    for number in range(3):
        short = replace(SPEC, steps=3, seed=number)
        engine.submit(
            sample_of(short, f"short {number}"), StageSegment(Stage.BASE, 3, last=True), Heard()
        )
    drain(engine)
    assert denoiser.batches == [*PROOF_OF_2, *[(1, 2)] * 3, *[(4, 8)] * 3, *[(1, 2)] * 4]
    assert [(r.rows, r.lanes) for r in records] == [(2, 2)] * 3 + [(8, 8)] * 3 + [(2, 2)] * 4


def test_the_cost_of_a_step_is_that_of_its_rows_and_not_of_the_first_one_s_proof() -> None:
    clock, records = Clock(), list[StepRecord]()
    engine = engine_of(SlowDenoiser(clock), clock, records)
    engine.submit(sample_of(SPEC), END, Heard())
    drain(engine)
    sample = sample_of(SPEC)
    costs = engine.stats().costs
    assert costs.seconds(turn_kind(WorkKind.STEP, sample, lanes=2)) == 2.0
    # The device was busy with the proof all the same, and whoever came first is charged for it.
    assert [record.seconds for record in records] == [2 + 2 + 8 + 2.0, *[2.0] * 9]


def test_a_number_of_lanes_that_is_not_kept_costs_what_the_next_one_costs() -> None:
    class Picky(SlowDenoiser):
        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            denoised = super().__call__(x, inputs, lanes)
            return denoised.nextafter(denoised + 1) if lanes == 2 else denoised

    clock, records = Clock(), list[StepRecord]()
    denoiser = Picky(clock)
    engine = engine_of(denoiser, clock, records)
    engine.submit(sample_of(SPEC), END, Heard())
    drain(engine)
    assert denoiser.batches == [*PROOF_OF_2, *PROOF_OF_4, *[(1, 4)] * 10]
    costs = engine.stats().costs
    for planned in (2, 4):
        assert costs.seconds(turn_kind(WorkKind.STEP, sample_of(SPEC), lanes=planned)) == 4.0


def test_a_proof_that_fails_ends_its_image_and_the_next_image_is_proved_again() -> None:
    clock, records, unlucky, lucky = Clock(), list[StepRecord](), Heard(), Heard()
    denoiser = SlowDenoiser(clock)
    denoiser.failures = [ValueError("a kernel's own words")]
    engine = engine_of(denoiser, clock, records)
    engine.submit(sample_of(SPEC, "unlucky"), END, unlucky)
    drain(engine)
    assert "kernel" not in str(unlucky.failed.error)
    engine.submit(sample_of(SPEC, "lucky"), END, lucky)
    drain(engine)
    assert lucky.finished
    assert denoiser.batches == [*PROOF_OF_2, *[(1, 2)] * 10]


def test_a_proof_may_take_as_long_as_a_first_turn_and_a_later_step_may_not() -> None:
    clock, records, denoiser = Clock(), list[StepRecord](), ConstantDenoiser()
    engine = engine_of(denoiser, clock, records)
    engine.submit(sample_of(SPEC, "first"), END, Heard())
    drain(engine)  # steps in two lanes are measured, those in eight are not
    denoiser.patience = 30.0
    denoiser.gate.clear()
    denoiser.entered.clear()
    wide = replace(SPEC, width=96)
    engine.start()
    engine.submit(sample_of(wide, "second"), END, Heard())
    assert denoiser.entered.wait(10)
    clock.now += 599
    engine.check()
    assert not engine.is_silent()
    clock.now += 2
    with pytest.raises(EngineFault):
        engine.check()
    assert engine.is_silent()
    denoiser.gate.set()
    until(lambda: engine.stats().finished == 2)
    engine.close()
