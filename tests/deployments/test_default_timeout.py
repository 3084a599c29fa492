"""How long an image may take whose request names no limit."""

import asyncio

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import (
    DeadlineExceeded,
)
from serve_app.deployments.conductor import Conductor
from tests.support.conductors import conductor_of, generate
from tests.support.stage_doubles import (
    JumpingLoop,
    SlowStage,
    dies_at,
)


def png_on_a_jumping_clock(conductor: Conductor, timeout_s: float | None) -> bytes:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(generate(conductor, timeout_s=timeout_s)).png


def test_the_default_timeout_is_long_enough_to_load_a_model() -> None:
    several = conductor_of(SlowStage(100), models=("fox", "owl"))
    assert png_on_a_jumping_clock(several, None) == b"png 20"
    cold = conductor_of(SlowStage(100), scale_to_zero=(Stage.BASE,))
    assert png_on_a_jumping_clock(cold, None) == b"png 20"
    with pytest.raises(DeadlineExceeded, match=r"within 6\d s"):
        png_on_a_jumping_clock(conductor_of(SlowStage(100)), None)


def test_the_default_timeout_starts_again_when_a_loss_is_noticed() -> None:
    """The first replica is lost in the middle, and each call takes fifty seconds."""
    stage = SlowStage(50, fault=dies_at((0, 8)))
    assert png_on_a_jumping_clock(conductor_of(stage), None) == b"png 20"
    stage = SlowStage(50, fault=dies_at((0, 8)))
    with pytest.raises(DeadlineExceeded, match="within 70 s"):
        png_on_a_jumping_clock(conductor_of(stage), 70)
