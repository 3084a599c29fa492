"""The engine's turn, with a denoiser whose answer is known; the test's thread is the engine's."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.samplers import Sampler, Solver
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import (
    EngineFault,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.replica_errors import TakenOver
from serve_app.core.service.events import Progress, Queued
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished, StepRecord
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from tests.support.analytic_model import ConstantDenoiser, analytic_model, engine_over
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.waiting import until

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
END = StageSegment(Stage.BASE, 10, last=True)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_sampler_converges_to_the_known_answer(sampler: Sampler) -> None:
    engine, heard = engine_over(ConstantDenoiser(0.25)), Heard()
    sample = sample_of(replace(SPEC, sampler=sampler))
    engine.submit(sample, whole(sample), heard)
    drain(engine)
    # DDIM leaves the noise of the first trained level, and LCM a trace of its previous latents.
    near = {Solver.DDIM: 0.1, Solver.LCM: 1e-3}.get(sampler.solver, 1e-6)
    assert heard.finished.sample.latents == pytest.approx(0.25, abs=near)
    assert heard.picture.shape == (64, 64, 3)


def test_samples_of_one_shape_step_together_in_one_call() -> None:
    denoiser = ConstantDenoiser()
    engine = engine_over(denoiser)
    for number in range(3):
        engine.submit(sample_of(SPEC, str(number)), END, Heard())
    drain(engine)
    assert denoiser.batches == [(3, 8)] * 10


def test_samples_whose_prompts_differ_in_length_step_apart() -> None:
    denoiser, heard = ConstantDenoiser(), Heard()
    engine = engine_over(denoiser)
    for number, more in enumerate(("", " BREAK at night", "", "! BREAK at night")):
        spec = replace(SPEC, prompt=SPEC.prompt + more)
        engine.submit(sample_of(spec, str(number)), END, heard if "!" in more else Heard())
    drain(engine)
    assert denoiser.batches == [(2, 8)] * 20
    assert heard.finished.sample.warnings == (
        "the prompt shouts",
        "the image of seed 1 is #3f3f3f everywhere",
    )


def test_a_cancelled_sample_takes_no_further_step_and_gets_no_event() -> None:
    denoiser = ConstantDenoiser()
    engine, heard = engine_over(denoiser), Heard()
    engine.submit(sample_of(SPEC), END, heard)
    for _ in range(4):
        engine.turn()
    steps, events = len(denoiser.batches), len(heard.events)
    engine.cancel("one", heard)
    drain(engine)
    assert len(denoiser.batches) == steps
    assert len(heard.events) == events
    assert engine.stats().cancelled == 1
    engine.cancel("one", heard)
    engine.turn()
    assert engine.stats().cancelled == 1


def test_a_cancel_during_a_step_takes_effect_before_the_next_one() -> None:
    denoiser = ConstantDenoiser()
    engine = engine_over(denoiser)
    engine.start()
    denoiser.gate.clear()
    heard = Heard()
    engine.submit(
        sample_of(replace(SPEC, steps=150)), StageSegment(Stage.BASE, 150, last=True), heard
    )
    assert denoiser.entered.wait(10)  # it waits at the gate, inside the step
    engine.cancel("one", heard)
    denoiser.gate.set()
    until(lambda: engine.stats().cancelled)
    assert len(denoiser.batches) == 1
    engine.close()


def test_snapshots_come_every_few_steps_and_not_too_often() -> None:
    now = [0.0]
    engine = engine_over(ConstantDenoiser(), clock=lambda: now[0])
    slow, fast = Heard(), Heard()
    engine.submit(sample_of(replace(SPEC, steps=30)), StageSegment(Stage.BASE, 30, last=True), slow)
    while engine.turn():
        now[0] += 0.1
    assert [s.index for s in slow.snapshots] == [5, 10, 15, 20, 25, 30]
    engine.submit(sample_of(replace(SPEC, steps=30)), StageSegment(Stage.BASE, 30, last=True), fast)
    while engine.turn():
        now[0] += 1 / 32
    assert [s.index for s in fast.snapshots] == [7, 14, 21, 28]


def test_progress_comes_when_a_sample_enters_the_batch_and_once_a_second() -> None:
    now, heard = [0.0], Heard()
    engine = engine_over(ConstantDenoiser(), clock=lambda: now[0], snapshot_every=99)
    sample = sample_of(replace(SPEC, steps=30))
    engine.submit(sample, whole(sample), heard)
    while engine.turn():
        now[0] += 0.25
    assert heard.events[:-1] == [Progress(0), *(Progress(index) for index in range(3, 30, 4))]


def test_a_sample_that_others_overtake_waits_again_after_a_second() -> None:
    now, slow = [0.0], Heard()
    engine = engine_over(ConstantDenoiser(), clock=lambda: now[0], snapshot_every=99)
    long = sample_of(replace(SPEC, steps=30), "long")
    engine.submit(long, whole(long), slow)
    engine.turn()
    engine.turn()
    for number in range(4):  # as many as step together, each of them more urgent
        engine.submit(sample_of(SPEC, str(number)), END, Heard())
    while engine.turn():
        now[0] += 0.25
    waited = slow.events.index(Queued())
    assert slow.events[:waited] == [Progress(0)]
    assert slow.events[waited + 1] == Progress(1)


def test_a_snapshot_owns_its_memory() -> None:
    """A view of a row would keep, and send, the whole batch."""
    clock = iter(range(10**6))
    engine = engine_over(ConstantDenoiser(), clock=lambda: next(clock))
    heard = Heard()
    for number in range(4):
        spec = replace(SPEC, sampler=Sampler.UNIPC)
        engine.submit(sample_of(spec, str(number)), END, heard)
    drain(engine)
    assert [len(s.solver_state) for s in heard.snapshots] == [3] * len(heard.snapshots)
    for snapshot in heard.snapshots:
        for latents in (snapshot.latents, *snapshot.solver_state):
            assert latents is not None
            assert latents.base is None
            assert latents.shape == (4, 8, 8)


def test_a_snapshot_of_another_profile_is_not_continued() -> None:
    engine, heard = engine_over(ConstantDenoiser()), Heard()
    engine.submit(replace(sample_of(SPEC), profile="base-float32-4-00000000"), END, heard)
    drain(engine)
    assert isinstance(heard.failed.error, ProfileChanged)


def test_a_segment_that_only_decodes_is_bound_to_the_profile_that_decoded_it() -> None:
    engine, heard = engine_over(ConstantDenoiser()), Heard()
    present = replace(sample_of(SPEC), index=10, latents=np.zeros((4, 8, 8), np.float32))
    engine.submit(present, END, heard)
    drain(engine)
    assert heard.picture.shape == (64, 64, 3)
    assert heard.finished.sample.profile == engine.models.profile.name


def test_a_sample_sent_again_replaces_the_first_and_late_cancels_do_not_touch_it() -> None:
    engine, first, second = engine_over(ConstantDenoiser()), Heard(), Heard()
    engine.submit(sample_of(SPEC), END, first)
    for _ in range(4):
        engine.turn()
    engine.submit(sample_of(SPEC), END, second)
    engine.cancel("one", first)
    drain(engine)
    running, end = first.events
    assert running == Progress(0)
    assert isinstance(end, Failed)
    assert isinstance(end.error, TakenOver)
    assert second.finished
    assert engine.stats().cancelled == 0


class PacedDenoiser(ConstantDenoiser):
    """Makes a call for each permit that the test releases."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(3)

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        assert self.permits.acquire(timeout=10)
        return super().__call__(x, inputs, lanes)


def test_close_hands_every_sample_back_before_the_thread_ends() -> None:
    denoiser = PacedDenoiser()
    engine, heard = engine_over(denoiser), Heard()
    engine.start()
    engine.submit(
        sample_of(replace(SPEC, steps=150)), StageSegment(Stage.BASE, 150, last=True), heard
    )
    until(lambda: len(denoiser.batches) == 3)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while closing.is_alive():
        denoiser.permits.release()  # the turn in progress ends, and close comes before the next
        closing.join(0.01)
    assert heard.snapshots[-1].index == len(denoiser.batches)
    assert isinstance(heard.failed.error, ReplicaLost)
    with pytest.raises(EngineFault, match="thread has ended"):
        engine.check()


class ObservedEngine(Engine):
    """Records on which thread each turn ran, and whether there was anything to do."""

    def __init__(self, denoiser: ConstantDenoiser) -> None:
        super().__init__(ModelCache.of(analytic_model(denoiser)), snapshot_every=5)
        self.turns: list[tuple[str, bool]] = []
        self.in_turn = threading.Event()

    def turn(self, *, wait: bool = False) -> bool:
        self.in_turn.set()
        worked = super().turn(wait=wait)
        self.turns.append((threading.current_thread().name, worked))
        return worked


def test_the_engine_works_on_its_own_thread_which_blocks_while_there_is_no_work() -> None:
    engine = ObservedEngine(ConstantDenoiser())
    engine.start()
    for number in range(3):
        finished = threading.Event()

        def listen(event: Event, finished: threading.Event = finished) -> None:
            if isinstance(event, Finished):
                engine.in_turn.clear()
                finished.set()

        engine.submit(sample_of(SPEC, str(number)), END, listen)
        assert finished.wait(30)
        assert engine.in_turn.wait(30)  # the next turn, which has nothing to do as yet
    engine.close()
    turns_per_sample = 1 + SPEC.steps + 1  # condition, steps, decode
    assert engine.turns == [("engine", True)] * 3 * turns_per_sample + [("engine", False)]


def test_stats_have_the_position_of_every_sample_and_the_owed_work() -> None:
    ticks = iter(i * 0.01 for i in range(10**6))
    engine = engine_over(ConstantDenoiser(), clock=lambda: next(ticks))
    engine.submit(sample_of(SPEC), END, Heard())
    for _ in range(4):
        engine.turn()
    stats = engine.stats()
    assert stats.positions == {"one": 3}
    assert (stats.turns, stats.steps, stats.finished) == (3, 3, 0)
    assert [work.steps_left for work in engine.pending()] == [7]
    drain(engine)
    assert engine.pending() == ()
    assert engine.stats().finished == 1


def test_every_step_is_recorded_with_its_samples_rows_and_seconds() -> None:
    turns: list[StepRecord] = []
    ticks = iter(range(10**6))
    engine = engine_over(ConstantDenoiser(), clock=lambda: float(next(ticks)), on_step=turns.append)
    for name, guidance in (("plain", 1), ("guided", 5)):
        engine.submit(sample_of(replace(SPEC, guidance=guidance), name), END, Heard())
    drain(engine)
    assert len(turns) == engine.stats().turns == 10
    for turn in turns:
        assert turn.stage is Stage.BASE
        assert sorted(turn.ids) == ["guided", "plain"]
        assert (turn.rows, turn.lanes) == (3, 8)
        assert turn.seconds > 0
    assert [turn.began for turn in turns] == sorted({turn.began for turn in turns})
