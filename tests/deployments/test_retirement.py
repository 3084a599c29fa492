"""A replica that Serve retires knows it by what Serve does no more."""

import asyncio
from itertools import pairwise

from serve_app.deployments.retirement import RetirementWatch


class Life:
    """A replica, each second of which is one event; Serve polls it in some of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.saved: list[float] = []
        self.fault: Exception | None = None
        self._wakes: list[tuple[float, asyncio.Event]] = []
        self.watch = RetirementWatch(self._save, lambda: self.now, self._sleep)

    async def seconds(self, count: int, *, polled: bool) -> None:
        for _ in range(count):
            self.now += 1
            if polled:
                self.watch.note_poll()
            for _, event in (due := [wake for wake in self._wakes if wake[0] <= self.now]):
                event.set()
            self._wakes = [wake for wake in self._wakes if wake not in due]
            for _ in range(5):
                await asyncio.sleep(0)

    async def _save(self) -> None:
        self.saved.append(self.now)
        if self.fault is not None:
            raise self.fault

    async def _sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._wakes.append((self.now + seconds, event))
        await event.wait()


async def test_jobs_are_saved_every_five_seconds_from_when_serve_polls_no_more() -> None:
    life = Life()
    await life.seconds(60, polled=True)
    assert life.saved == []
    await life.seconds(20, polled=False)
    assert life.saved[0] - 60 <= 6
    assert [b - a for a, b in pairwise(life.saved)] == [5, 5, 5]


async def test_a_controller_that_was_away_ends_the_saving_when_it_is_back() -> None:
    life = Life()
    await life.seconds(3, polled=True)
    await life.seconds(8, polled=False)
    count = len(life.saved)
    assert count == 1
    await life.seconds(20, polled=True)
    assert len(life.saved) == count


async def test_a_replica_that_was_never_polled_saves_nothing() -> None:
    life = Life()
    await life.seconds(30, polled=False)
    assert life.saved == []
    assert not life.watch.is_silent


async def test_a_replica_may_retire_from_when_serve_polls_no_more_until_it_polls_again() -> None:
    life = Life()
    silent = []
    for polled in (True, False, True):
        await life.seconds(6, polled=polled)
        silent.append(life.watch.is_silent)
    assert silent == [False, True, False]


async def test_a_save_that_fails_is_tried_again() -> None:
    life = Life()
    life.fault = OSError("no space")
    await life.seconds(1, polled=True)
    await life.seconds(20, polled=False)
    assert len(life.saved) >= 3
