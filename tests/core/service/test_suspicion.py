"""What is known against an image whose replicas die."""

from functools import reduce
from typing import Any

import pytest

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.service.events import (
    Accepted,
    Preview,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    StageEvent,
)
from serve_app.core.service.suspicion import MAX_DEATHS, Loss, Suspicion
from tests.support.images import image

SNAPSHOT: Snapshot[Any] = Snapshot(image("a"))
DONE: SegmentDone[Any] = SegmentDone(image("a"), None, GpuTime(), CostTable())
ALONE = Progress(5, alone=True)


def after(*events: StageEvent, state: Suspicion | None = None) -> Suspicion:
    """Return the state of an image that was sent to a replica, after these events."""
    sent = (state or Suspicion()).after_sending()
    return reduce(Suspicion.after_event, events, sent)


SUSPECT = after(Queued(), Progress(0)).after_loss(Loss.DIED)


@pytest.mark.parametrize(
    "events",
    [
        (),
        (Accepted("r"),),
        (Queued(), Progress(3)),
        (Queued(), Progress(3), Preview(2, b"jpeg"), SNAPSHOT),
        (Queued(), Progress(3), Queued(), Progress(4)),
    ],
)
def test_an_image_that_may_have_been_running_is_a_suspect(events: tuple[StageEvent, ...]) -> None:
    state = after(*events).after_loss(Loss.DIED)
    assert state.is_suspect
    assert not state.is_convicted


@pytest.mark.parametrize("events", [(Queued(),), (Queued(), Progress(3), SNAPSHOT, Queued())])
def test_an_image_that_was_known_to_wait_is_no_suspect(events: tuple[StageEvent, ...]) -> None:
    state = after(*events).after_loss(Loss.DIED)
    assert not state.is_suspect
    assert state.deaths == 1


@pytest.mark.parametrize("loss", [Loss.DIED, Loss.HUNG])
def test_a_death_while_it_ran_alone_convicts(loss: Loss) -> None:
    assert after(Queued(), ALONE, SNAPSHOT, state=SUSPECT).after_loss(loss).is_convicted


def test_silence_makes_suspects_and_convicts_nobody() -> None:
    assert after(Queued(), Progress(0)).after_loss(Loss.SILENT).is_suspect
    state = after(Queued(), ALONE, state=SUSPECT).after_loss(Loss.SILENT)
    assert state.is_suspect
    assert not state.is_convicted


@pytest.mark.parametrize("events", [(), (Queued(),), (Accepted("r"), Queued())])
def test_a_death_before_a_suspect_s_quarantine_convicts_nobody(
    events: tuple[StageEvent, ...],
) -> None:
    state = after(*events, state=SUSPECT).after_loss(Loss.DIED)
    assert state.is_suspect
    assert not state.is_convicted


@pytest.mark.parametrize("event", [Queued(), Progress(7), DONE])
def test_a_suspect_that_has_run_alone_is_cleared(event: StageEvent) -> None:
    state = after(Queued(), ALONE, SNAPSHOT, event, state=SUSPECT)
    assert not state.is_suspect
    assert not state.after_loss(Loss.DIED).is_convicted


def test_a_suspect_runs_alone_for_twice_as_long_each_time() -> None:
    assert Suspicion().quarantine == 0
    state = Suspicion()
    for times in (1, 2, 4):
        state = after(Queued(), Progress(9), state=state).after_loss(Loss.DIED)
        assert state.quarantine == times
        state = after(Queued(), ALONE, SNAPSHOT, Queued(), Progress(9), state=state)
        assert state.quarantine == 0
    silent = after(Queued(), Progress(9)).after_loss(Loss.SILENT)
    assert silent.quarantine == 1
    assert after(Queued(), state=silent).after_loss(Loss.DIED).quarantine == 1


def test_a_suspect_that_waits_or_goes_on_alone_is_not_cleared() -> None:
    assert after(Queued(), Queued(), state=SUSPECT).is_suspect
    assert after(Queued(), ALONE, ALONE, SNAPSHOT, state=SUSPECT).is_suspect


def test_five_lost_replicas_are_the_most_of_a_life() -> None:
    state = Suspicion()
    for _ in range(MAX_DEATHS):
        assert not state.is_exhausted
        state = after(Queued(), state=state).after_loss(Loss.DIED)
    assert state.is_exhausted


def test_an_event_of_another_kind_is_an_error() -> None:
    unknown: Any = "news"
    with pytest.raises(AssertionError):
        after(unknown)
