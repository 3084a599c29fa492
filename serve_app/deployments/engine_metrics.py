"""What a replica's engine does, recorded on a meter: steps, waits, running totals.

No Ray and no engine. The engine's thread only leaves each step here; everything else happens on the
event loop, about once a second, so that recording never delays a step.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.core.service.metrics import (
    GPU_TIME,
    GPU_WASTED,
    IMAGES_CANCELLED,
    IMAGES_RUNNING,
    IMAGES_WAITING,
    NUMERIC_FAULTS,
    OWED_SECONDS,
    QUEUE_TIME,
    STEP_DURATION,
    STEP_LANES,
    STEP_ROWS,
    Meter,
)
from serve_app.runtime.engine_events import StepRecord

_MAX_STEPS = 10_000  # kept while the event loop is held up
_TOTALS = {  # of the replica's stats
    IMAGES_CANCELLED: attrgetter("engine.cancelled"),
    NUMERIC_FAULTS: attrgetter("engine.numeric_faults"),
    GPU_TIME: attrgetter("engine.gpu_seconds"),
    GPU_WASTED: attrgetter("engine.wasted_gpu_seconds"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A sample's stay on the replica for one segment."""

    id: str  # the sample's
    stage: Stage
    time: float


class EngineMetrics:
    """The steps of one replica since the last flush, and the samples on it."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock  # the engine's
        self._steps: deque[StepRecord] = deque(maxlen=_MAX_STEPS)
        self._present: set[Arrival] = set()
        self._waiting: dict[str, Arrival] = {}  # for their first step, by the sample's id
        self._departed: list[Arrival] = []  # since the last flush
        self._stages: set[Stage] = set()  # that samples have arrived for
        self._recorded = dict.fromkeys(_TOTALS, 0.0)

    def on_step(self, step: StepRecord) -> None:
        """Keep the step until the next flush. May be called from any thread."""
        self._steps.append(step)

    def sample_arrived(self, id: str, stage: Stage) -> Arrival:
        """Let a sample wait for its first step of a segment; return what `sample_left` needs."""
        self._record_steps()
        arrival = Arrival(id, stage, self._clock())
        self._present.add(arrival)
        self._waiting[id] = arrival
        self._stages.add(stage)
        return arrival

    def sample_left(self, arrival: Arrival) -> None:
        """Note that the sample takes no more steps of that segment here."""
        self._present.discard(arrival)
        self._departed.append(arrival)

    def flush(self, stats: ReplicaStats) -> bool:
        """Record all steps, and the replica's stats as they are now.

        Return whether there will be more to record: a sample that left may be in the engine until
        its turn ends.
        """
        self._record_steps()
        self._meter.record(OWED_SECONDS, stats.owed_seconds)
        present = Counter(arrival.stage for arrival in self._present)
        waiting = Counter(arrival.stage for arrival in self._waiting.values())
        for stage in self._stages:
            self._meter.record(IMAGES_RUNNING, present[stage] - waiting[stage], stage=stage)
            self._meter.record(IMAGES_WAITING, waiting[stage], stage=stage)
        for metric, total_of in _TOTALS.items():
            total = total_of(stats)
            self._meter.record(metric, total - self._recorded[metric])
            self._recorded[metric] = total
        return bool(self._present) or bool(stats.engine.positions)

    def _record_steps(self) -> None:
        departed, self._departed = self._departed, []
        while self._steps:
            step = self._steps.popleft()
            self._meter.record(STEP_DURATION, step.seconds, stage=step.stage)
            self._meter.record(STEP_ROWS, step.rows, stage=step.stage)
            self._meter.record(STEP_LANES, step.lanes, stage=step.stage)
            for id in step.ids:
                arrival = self._waiting.get(id)
                # a step that began before the arrival is of the previous segment
                if arrival is not None and arrival.time <= step.began:
                    del self._waiting[id]
                    self._meter.record(QUEUE_TIME, step.began - arrival.time, stage=step.stage)
        for arrival in departed:
            if self._waiting.get(arrival.id) is arrival:
                del self._waiting[arrival.id]
