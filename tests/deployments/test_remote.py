"""The remote stage over a handle that keeps the contract of Ray's without Ray."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from serve_app.core.account import Spent
from serve_app.core.cost import Prices
from serve_app.core.events import Arrived, Snapshot
from serve_app.core.sample import Leg, begin
from serve_app.core.schedule import make_schedule
from serve_app.core.spec import ImageSpec, Stage
from serve_app.deployments.remote import RemoteStage
from tests.runtime.walking import NOISE

SPEC = ImageSpec(prompt="a", seed=1, width=64, height=64, steps=2, guidance=1)
SAMPLE: Any = begin("one", SPEC, make_schedule(NOISE, SPEC.sampler, 2, None, 1.0), Stage.BASE)
LEG = Leg(Stage.BASE, 2, last=True)
EVENTS = [Snapshot(SAMPLE), Snapshot(SAMPLE), Arrived(SAMPLE, b"png", Spent(1.0), Prices())]


class Handle:
    """A deployment that answers every call with the same events, and counts what was cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0

    def options(self, **_: Any) -> "Handle":
        return self

    @property
    def advance(self) -> "Handle":
        return self

    def remote(self, *_: Any) -> "Handle":
        return self

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in EVENTS:
            yield event

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize(("heard", "cancelled"), [(1, 1), (2, 1), (3, 0)])
async def test_what_is_left_before_its_end_is_cancelled_and_nothing_else(
    heard: int, cancelled: int
) -> None:
    handle: Any = Handle()
    stage: Any = RemoteStage("base", handle)
    async with aclosing(stage.advance(SAMPLE, LEG)) as events:
        for _ in range(heard):
            await anext(events)
    assert handle.cancelled == cancelled
