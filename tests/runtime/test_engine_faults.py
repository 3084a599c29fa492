"""What becomes of an engine and its samples when a turn hangs, fails or runs out of memory."""

from dataclasses import replace

import pytest
import torch

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import EngineFault, ImageTooLarge
from tests.support.analytic_model import ConstantDenoiser, engine_over
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.waiting import until

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
END = StageSegment(Stage.BASE, 10, last=True)


def test_an_engine_whose_turn_hangs_is_unwell_and_its_stats_are_read_all_the_same() -> None:
    denoiser, now = ConstantDenoiser(), [0.0]
    engine = engine_over(denoiser, clock=lambda: now[0])
    sample = sample_of(replace(SPEC, steps=150))
    engine.submit(sample, whole(sample), Heard())
    engine.turn()
    engine.turn()  # a first step: it is measured
    engine.start()
    denoiser.gate.clear()
    denoiser.entered.clear()
    assert denoiser.entered.wait(10)
    for seconds, silent in ((9.0, False), (11.0, True)):
        now[0] += seconds
        assert engine.is_silent() == silent
        now[0] -= seconds
    now[0] += 19
    engine.check()
    now[0] += 2
    with pytest.raises(EngineFault, match="21 s so far"):
        engine.check()
    assert engine.stats().positions["one"] > 0
    assert len(engine.pending()) == 1
    denoiser.gate.set()
    until(lambda: not engine.is_silent())
    engine.check()
    engine.close()


def test_an_idle_engine_is_well_for_ever() -> None:
    now = [0.0]
    engine = engine_over(ConstantDenoiser(), clock=lambda: now[0])
    engine.submit(sample_of(SPEC), END, Heard())
    drain(engine)
    now[0] += 1e6
    assert not engine.is_silent()
    engine.check()


def test_a_failed_turn_ends_only_its_own_samples() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures = [ValueError("a secret inside")]
    engine, first, second = engine_over(denoiser), Heard(), Heard()
    engine.submit(sample_of(SPEC, "first"), END, first)
    drain(engine)
    engine.submit(sample_of(SPEC, "second"), END, second)
    drain(engine)
    assert isinstance(first.failed.error, EngineFault)
    assert "secret" not in str(first.failed.error)
    assert second.finished
    engine.check()


def test_an_image_that_runs_out_of_memory_alone_is_retried_once() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures = [torch.OutOfMemoryError("CUDA out of memory")]
    engine, heard = engine_over(denoiser), Heard()
    engine.submit(sample_of(SPEC), END, heard)
    drain(engine)
    assert heard.finished


def test_an_image_that_runs_out_of_memory_alone_twice_is_too_large() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures = [torch.OutOfMemoryError("CUDA out of memory")] * 2
    engine, heard, next_one = engine_over(denoiser), Heard(), Heard()
    engine.submit(sample_of(SPEC), END, heard)
    drain(engine)
    assert isinstance(heard.failed.error, ImageTooLarge)
    engine.submit(sample_of(SPEC, "next"), END, next_one)
    drain(engine)
    assert next_one.finished


def test_a_sample_without_steps_is_refused_and_others_go_on() -> None:
    engine, heard, beside = engine_over(ConstantDenoiser()), Heard(), Heard()
    engine.submit(sample_of(SPEC), StageSegment(Stage.BASE, 0, last=False), heard)
    engine.submit(sample_of(SPEC, "beside"), END, beside)
    drain(engine)
    assert isinstance(heard.failed.error, EngineFault)
    assert beside.finished


def test_a_listener_that_raises_does_not_affect_other_samples() -> None:
    def broken(event: object) -> None:
        raise RuntimeError("its event loop is closed")

    engine, beside = engine_over(ConstantDenoiser()), Heard()
    engine.submit(sample_of(SPEC), END, broken)
    engine.submit(sample_of(SPEC, "beside"), END, beside)
    drain(engine)
    assert beside.finished
    engine.check()
