"""Suspects on the engine: how long each runs alone, and what its listener hears of it."""

from dataclasses import replace
from typing import Any

import torch

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import Progress, Queued
from tests.support.analytic_model import ConstantDenoiser, engine_over
from tests.support.engine_runs import Heard, drain, sample_of

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
END = StageSegment(Stage.BASE, 10, last=True)


def test_a_suspect_runs_alone_for_as_many_steps_as_lie_between_two_snapshots_and_two_more() -> None:
    denoiser, suspect, pauses = ConstantDenoiser(), Heard(), list[float]()
    now = [0.0]
    engine = engine_over(denoiser, clock=lambda: now[0], pause=pauses.append)
    long = StageSegment(Stage.BASE, 30, last=True)
    spec = replace(SPEC, steps=30)
    engine.submit(sample_of(spec, "other"), long, Heard())
    engine.submit(sample_of(spec, "suspect"), replace(long, alone=True), suspect)
    while engine.turn():
        now[0] += 0.1
    assert [images for images, _ in denoiser.batches[:8]] == [1] * 7 + [2]
    places = [event for event in suspect.events if isinstance(event, Progress | Queued)]
    assert places[:3] == [Progress(0, alone=True), Queued(), Progress(7)]
    assert pauses == [0.05]  # before the first turn alone, and only then


def test_who_was_suspected_again_runs_alone_for_longer() -> None:
    denoiser, now = ConstantDenoiser(), [0.0]
    engine = engine_over(denoiser, clock=lambda: now[0], pause=lambda seconds: None)
    spec, long = replace(SPEC, steps=30), StageSegment(Stage.BASE, 30, last=True)
    engine.submit(sample_of(spec, "other"), long, Heard())
    engine.submit(sample_of(spec, "suspect"), replace(long, alone=2), Heard())
    while engine.turn():
        now[0] += 0.1
    assert [images for images, _ in denoiser.batches[:15]] == [1] * 14 + [2]


def test_the_news_that_a_suspect_runs_alone_comes_before_its_turn() -> None:
    events: list[Any] = []

    class Recorder(ConstantDenoiser):
        def __call__(self, *args: Any) -> torch.Tensor:
            events.append("step")
            return super().__call__(*args)

    engine = engine_over(Recorder(), pause=events.append)
    engine.submit(sample_of(SPEC), replace(END, alone=True), events.append)
    drain(engine)
    assert events[:3] == [Progress(0, alone=True), 0.05, "step"]


def test_with_quick_steps_a_suspect_runs_alone_for_all_that_one_snapshot_may_lack() -> None:
    denoiser, now = ConstantDenoiser(), [0.0]
    engine = engine_over(denoiser, clock=lambda: now[0], pause=lambda seconds: None)
    spec, long = replace(SPEC, steps=60), StageSegment(Stage.BASE, 60, last=True)
    for id, segment in (("first", long), ("suspect", replace(long, alone=True))):
        engine.submit(sample_of(spec, id), segment, Heard())
        if id == "first":
            for _ in range(20):
                engine.turn()
                now[0] += 0.01
    denoiser.batches.clear()
    while engine.turn():
        now[0] += 0.01
    alone = [images for images, _ in denoiser.batches].index(2)
    assert alone >= 20  # 0.2 s
