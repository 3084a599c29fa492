"""`Subscriptions`: who listens to each sample of an engine, and what the listeners know so far.

No engine, no event loop and no clock: times are the engine's, and so is the thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import torch

from serve_app.core.diffusion.spec import StepCache
from serve_app.core.diffusion.step_kind import CACHE_INTERVAL
from serve_app.core.scheduling.work import Plan, WorkKind
from serve_app.core.service.events import Progress, Queued, Snapshot
from serve_app.runtime.engine_events import Listener, PreviewMade, notify
from serve_app.runtime.live_sample import DeviceSample, finite_copy
from serve_app.runtime.previews import StepPreviews

SNAPSHOT_GAP = 0.2  # seconds between two snapshots of a sample, which take about a millisecond each
PROGRESS_GAP = 1.0  # seconds between two `Progress` events of a sample that goes on running
WATCHED_GAP = 0.1  # the same while somebody watches it
PREVIEW_GAP = 0.2  # seconds between two previews of a sample that somebody watches


def steps_between_snapshots(every: int, step_seconds: float, cache: StepCache) -> int:
    """Return the most steps that a sample takes from one snapshot to the next.

    With a step cache a snapshot waits for the next full step.
    """
    steps = max(every, ceil(SNAPSHOT_GAP / max(step_seconds, 1e-3)))
    return steps if cache is StepCache.OFF else steps + CACHE_INTERVAL - 1


@dataclass(slots=True)
class Subscription:
    """Who listens to a sample, when it was last copied out, and what the listener knows of it."""

    listener: Listener
    index: int
    time: float
    resumable: DeviceSample  # the last that can go on elsewhere: its next step is not shallow
    retried_alone: bool = False  # after running out of memory in a turn of its own
    runs: bool = False  # as far as the listener knows
    alone: bool = False
    progress_time: float = -inf  # of the last `Progress`
    turn_time: float = -inf  # when its last turn began
    watched: bool = False
    preview_time: float = -inf  # when a step began of which there was a preview

    def is_snapshot_due(self, sample: DeviceSample, now: float, every: int) -> bool:
        """Return whether the sample, just stepped, should be copied out after `every` steps.

        One whose next step is shallow waits for the full step after it: the features that it would
        reuse stay on the device.
        """
        is_old = sample.index - self.index >= every and now - self.time >= SNAPSHOT_GAP
        return is_old and not sample.is_shallow

    def takes_retry(self) -> bool:
        """Return whether the sample may run alone once more, and note it if so."""
        retried, self.retried_alone = self.retried_alone, True
        return not retried

    def notify_turn(self, index: int, now: float, *, alone: bool) -> bool:
        """Notify the listener, before a turn, that the sample takes part in it.

        Return whether a quarantine begins.
        """
        begins = alone and not self.alone
        gap = WATCHED_GAP if self.watched else PROGRESS_GAP
        if begins or not self.runs or now - self.progress_time >= gap:
            self.progress_time = now
            notify(self.listener, Progress(index, alone))
        self.runs, self.alone, self.turn_time = True, alone, now
        return begins

    def takes_preview(self, now: float) -> bool:
        """Return whether the step that begins now should have a preview, and note it if so."""
        if not self.watched or now - self.preview_time < PREVIEW_GAP:
            return False
        self.preview_time = now
        return True

    def notify_clearance(self) -> None:
        """Notify the listener that the sample's quarantine is over: it waits like any other."""
        self.runs = self.alone = False
        notify(self.listener, Queued())

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

    def add(
        self, sample: DeviceSample, listener: Listener, now: float, *, watched: bool = False
    ) -> None:
        """Let the listener have the events of a sample."""
        self._by_id[sample.id] = Subscription(listener, sample.index, now, sample, watched=watched)

    def watch(self, id: str, *, watched: bool) -> None:
        """Note that somebody watches a sample, or nobody any more; nothing if it is unknown."""
        if id in self._by_id:
            self._by_id[id].watched = watched

    def take_previews(self, plan: Plan[torch.Tensor], now: float) -> frozenset[str]:
        """Return the ids of the samples of which the turn that begins now should have a preview."""
        if plan.work is not WorkKind.STEP:
            return frozenset()
        ids = (sample.id for sample in plan.samples)
        return frozenset(id for id in ids if self._by_id[id].takes_preview(now))

    def send_previews(self, previews: StepPreviews | None) -> None:
        """Notify the listeners of the previews of a step that is done, if there are any."""
        if previews is not None:
            for id, index, image in previews.images():
                if id in self._by_id:
                    notify(self._by_id[id].listener, PreviewMade(index, image))

    def pop(self, id: str) -> Listener:
        """Drop a subscription; return its listener."""
        return self._by_id.pop(id).listener

    def send_snapshots(self, stepped: Sequence[DeviceSample], now: float, every: int) -> list[str]:
        """Copy out the samples, just stepped, of which a snapshot is due.

        Return the ids of those that are not finite.
        """
        self.keep_resumable(stepped)
        lost = []
        for sample in stepped:
            subscription = self._by_id[sample.id]
            if not subscription.is_snapshot_due(sample, now, every):
                continue
            subscription.index, subscription.time = sample.index, now
            if not notify_snapshot(subscription.listener, sample):
                lost.append(sample.id)
        return lost

    def is_snapshot_due(self, sample: DeviceSample, now: float, every: int) -> bool:
        """Return whether `send_snapshots` would copy out a sample."""
        return self._by_id[sample.id].is_snapshot_due(sample, now, every)

    def keep_resumable(self, stepped: Sequence[DeviceSample]) -> None:
        """Remember the samples, just stepped, as they can go on elsewhere."""
        for sample in stepped:
            if not sample.is_shallow:
                self._by_id[sample.id].resumable = sample

    def notify_clearance(self, id: str) -> None:
        """Notify the listener of a sample that has left quarantine, if it goes on."""
        if id in self._by_id:
            self._by_id[id].notify_clearance()

    def notify_turn(self, plan: Plan[torch.Tensor], now: float) -> bool:
        """Notify the listeners, before a turn, whose samples run and whose wait again.

        Return whether a quarantine begins. A load is no turn of the samples that wait for it.
        """
        if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
            return False
        taking_part = {sample.id for sample in plan.samples}
        for id, subscription in self._by_id.items():
            if id not in taking_part:
                subscription.notify_absence(now)
        begins = [
            self._by_id[sample.id].notify_turn(sample.index, now, alone=plan.alone)
            for sample in plan.samples
        ]
        return any(begins)


def notify_snapshot(listener: Listener, sample: DeviceSample) -> bool:
    """Copy a sample out for its listener; only return False if it is not finite.

    No further step can mend such a sample, and nobody could continue it.
    """
    snapshot = finite_copy(sample)
    if snapshot is None:
        return False
    notify(listener, Snapshot(snapshot))
    return True
