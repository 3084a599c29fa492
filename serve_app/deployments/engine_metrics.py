"""What a replica's engine does, told to a meter: steps, waits, running totals.

Knows no Ray and no engine. The engine's thread only leaves each turn here; all else happens on the
event loop, once in a while, so that counting never holds up a step.
"""

import time
from collections import deque
from collections.abc import Callable
from operator import attrgetter

from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.metrics import (
    BUSY_SECONDS,
    CANCELS,
    OWED_SECONDS,
    QUEUE_SECONDS,
    STEP_LANES,
    STEP_ROWS,
    STEP_SECONDS,
    WASTED_SECONDS,
    Meter,
)
from serve_app.runtime.step_record import StepRecord

_KEPT = 10_000  # turns, while the event loop is held up
_TOTALS = {  # of the replica's facts
    CANCELS: attrgetter("cancelled"),
    BUSY_SECONDS: attrgetter("gpu_seconds"),
    WASTED_SECONDS: attrgetter("wasted_gpu_seconds"),
}


class EngineMetrics:
    """The turns of one replica since it last told of them, and the samples that wait for theirs."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock  # the engine's
        self._turns: deque[StepRecord] = deque(maxlen=_KEPT)
        self._waiting: dict[str, float] = {}  # since when
        self._left: list[tuple[str, float]] = []
        self._here = 0  # samples that came and have not left
        self._told = dict.fromkeys(_TOTALS, 0.0)

    def on_step(self, turn: StepRecord) -> None:
        """The turn will be told of. May be called from any thread."""
        self._turns.append(turn)

    def sample_arrived(self, id: str) -> float:
        """The sample waits for its first step here, or for its first on another leg. Gives the
        time, by which `left` knows that it is this wait that ends."""
        self._tell_turns()
        self._here += 1
        self._waiting[id] = since = self._clock()
        return since

    def sample_left(self, id: str, since: float) -> None:
        """The sample that came then takes no more steps here."""
        self._here -= 1
        self._left.append((id, since))

    def flush(self, facts: ReplicaStats) -> bool:
        """The meter has heard of all turns, and of what the replica has come to. Whether more is to
        come of those who are here: a sample that left may be in the engine until its turn ends.
        """
        self._tell_turns()
        self._meter.record(OWED_SECONDS, facts.owed_seconds)
        for metric, total_of in _TOTALS.items():
            total = total_of(facts)
            self._meter.record(metric, total - self._told[metric])
            self._told[metric] = total
        return self._here > 0 or bool(facts.positions)

    def _tell_turns(self) -> None:
        left, self._left = self._left, []
        while self._turns:
            turn = self._turns.popleft()
            self._meter.record(STEP_SECONDS, turn.seconds, stage=turn.stage)
            self._meter.record(STEP_ROWS, turn.rows, stage=turn.stage)
            self._meter.record(STEP_LANES, turn.lanes, stage=turn.stage)
            for id in turn.ids:
                since = self._waiting.get(id)
                if since is not None and since <= turn.began:  # else a turn of the leg before
                    del self._waiting[id]
                    self._meter.record(QUEUE_SECONDS, turn.began - since, stage=turn.stage)
        for id, since in left:
            if self._waiting.get(id) == since:
                del self._waiting[id]
