"""`Subscriptions`: who listens to each sample of an engine, and what the listeners know so far.

No engine, no event loop and no clock: times are the engine's, and so is the thread.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from serve_app.core.service.events import Progress, Queued
from serve_app.runtime.engine_events import Listener, notify
from serve_app.runtime.stage_model import DeviceSample

SNAPSHOT_GAP = 0.2  # seconds between two snapshots of a sample, which take about a millisecond each
PROGRESS_GAP = 1.0  # seconds between two `Progress` events of a sample that goes on running


@dataclass(slots=True)
class Subscription:
    """Who listens to a sample, when it was last copied out, and what the listener knows of it."""

    listener: Listener
    index: int
    time: float
    retried_alone: bool = False  # after running out of memory in a turn of its own
    runs: bool = False  # as far as the listener knows
    progress_time: float = -inf  # of the last `Progress`
    turn_time: float = -inf  # when its last turn began

    def takes_snapshot(self, index: int, now: float, every: int) -> bool:
        """Return whether a snapshot is due after `every` steps, and note it if so."""
        if index - self.index < every or now - self.time < SNAPSHOT_GAP:
            return False
        self.index, self.time = index, now
        return True

    def notify_turn(self, index: int, now: float) -> None:
        """Notify the listener, before a turn, that the sample takes part in it."""
        self.turn_time = now
        if not self.runs or now - self.progress_time >= PROGRESS_GAP:
            self.runs, self.progress_time = True, now
            notify(self.listener, Progress(index))

    def notify_absence(self, now: float) -> None:
        """Notify the listener if the sample has had no turn for a while."""
        if self.runs and now - self.turn_time >= PROGRESS_GAP:
            self.runs = False
            notify(self.listener, Queued())


class Subscriptions:
    """The subscription of each sample, by the sample's id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Subscription] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._by_id

    def __getitem__(self, id: str) -> Subscription:
        return self._by_id[id]

    def get(self, id: str) -> Subscription | None:
        """Return the subscription of a sample, if there is one."""
        return self._by_id.get(id)

    def add(self, id: str, listener: Listener, index: int, now: float) -> None:
        """Let the listener have the events of a sample that begins at a step index."""
        self._by_id[id] = Subscription(listener, index, now)

    def pop(self, id: str) -> Listener:
        """Drop a subscription; return its listener."""
        return self._by_id.pop(id).listener

    def notify_turn(self, samples: Sequence[DeviceSample], now: float) -> None:
        """Notify the listeners, before a turn, whose samples run and whose wait again."""
        taking_part: Collection[str] = {sample.id for sample in samples}
        for id, subscription in self._by_id.items():
            if id not in taking_part:
                subscription.notify_absence(now)
        for sample in samples:
            self._by_id[sample.id].notify_turn(sample.index, now)
