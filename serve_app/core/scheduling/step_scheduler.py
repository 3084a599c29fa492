"""`StepScheduler`: what one replica's samples do next. It decides and runs nothing.

Every turn has four verbs: `admit_ready` starts samples that have what they need in memory, `plan`
answers what to do next, the engine does it, `charge` counts its seconds, and `settle` takes the
results; of a device that works ahead, the seconds expected and results that it has yet to make.
Commands (`add`, `cancel`, `evict`) come between turns, from the one thread that owns the scheduler.
Callers share the device as `DeviceShares` says; of one caller the most urgent sample is first.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import L, Sample, StageSegment
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.device_shares import DeviceShares
from serve_app.core.scheduling.quarantine import Quarantine
from serve_app.core.scheduling.queued_sample import (
    Loadable,
    QueuedSample,
    WaitingForMemory,
    extensions_needed,
    models_needed,
    work_after,
    work_with,
)
from serve_app.core.scheduling.residency import Residency
from serve_app.core.scheduling.step_queue import StepQueue
from serve_app.core.scheduling.work import BatchSize, PendingWork, Plan, Rotation, WorkKind

_LOADS = (WorkKind.LOAD, WorkKind.ATTACH)
_USES_EXTENSIONS = (WorkKind.CONDITION, WorkKind.ENCODE, WorkKind.STEP)


class StepScheduler(Generic[L]):
    """The samples of one replica and what each needs next.

    `batch_sizes` has the models in memory, of which there are at most `model_capacity`, each with
    at most `extension_capacity` extensions attached.
    """

    def __init__(
        self,
        batch_sizes: Mapping[ModelKey, BatchSize],
        *,
        model_capacity: int = 1,
        extension_capacity: int = 1,
    ) -> None:
        self._entries: dict[str, QueuedSample[L]] = {}  # in order of arrival
        self._queues: dict[WorkKind, dict[str, QueuedSample[L]]] = {work: {} for work in WorkKind}
        self._steps = StepQueue()
        self.shares = DeviceShares()
        self._in_use = Counter[ModelKey]()  # samples that have their model
        self.quarantine = Quarantine()
        self._retries: dict[str, None] = {}  # ids whose next step runs alone, in their order
        self._arrived = 0
        self._batch_sizes = dict(batch_sizes)
        self._models = Residency[ModelKey](batch_sizes, model_capacity)
        self._no_extensions = partial(Residency[ExtensionKey], (), extension_capacity)
        self._extensions = {key: self._no_extensions() for key in batch_sizes}
        self._turn = 0  # step turns so far
        self._rotation = Rotation()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def __repr__(self) -> str:
        counts = {work: len(queue) for work, queue in self._queues.items()}
        waiting = sum(counts.values()) - counts[WorkKind.STEP] - counts[WorkKind.DECODE]
        return (
            f"<StepScheduler {waiting} waiting | {counts[WorkKind.STEP]} stepping in "
            f"{len(self._steps)} batch keys | {counts[WorkKind.DECODE]} decoding | "
            f"{len(self.shares)} callers>"
        )

    def add(self, sample: Sample[L], segment: StageSegment, *, alone_steps: int = 0) -> None:
        """Take a sample, to be stepped to the end of the segment.

        Its first `alone_steps` steps run in quarantine: as soon as its model is in memory it is
        the only sample that has turns, until it has taken them or its segment is done.
        Raises `ValueError` if it was added before, or has nothing to do in the segment.
        """
        if sample.id in self._entries:
            raise ValueError(f"sample {sample.id} was already added")
        if sample.index >= segment.stop and not segment.last:
            raise ValueError(f"sample {sample.id} has no step to take before {segment.stop}")
        due = self._turn + max(0, segment.stop - sample.index)
        self._entries[sample.id] = entry = QueuedSample(sample, segment, due, self._arrived)
        self._queues[WorkKind.LOAD][sample.id] = entry
        if alone_steps:
            self.quarantine.add(sample.id, sample.index + alone_steps)
        self._arrived += 1
        self.shares.enter(sample.caller)

    def cancel(self, id: str) -> bool:
        """Drop a sample from every queue; return whether there was one."""
        if id not in self._entries:
            return False
        self.remove(id)
        return True

    def remove(self, id: str) -> Sample[L]:
        """Drop a sample and return it as it stands. Raises `KeyError`."""
        entry = self._entries.pop(id)
        self.quarantine.remove(id)
        self._retries.pop(id, None)
        self._dequeue(entry)
        self.shares.leave(entry.sample.caller)
        return entry.sample

    def set_resident(
        self,
        batch_sizes: Mapping[ModelKey, BatchSize],
        extensions: Mapping[ModelKey, Collection[ExtensionKey]] | None = None,
    ) -> None:
        """Replace the models in memory, and the extensions attached to each."""
        self._batch_sizes = dict(batch_sizes)
        self._models.set_resident(batch_sizes)
        self._extensions = {
            key: self._extensions.get(key) or self._no_extensions() for key in batch_sizes
        }
        for key, residency in self._extensions.items():
            residency.set_resident((extensions or {}).get(key, ()))

    def samples(self) -> tuple[Sample[L], ...]:
        """Return every sample in flight, in order of arrival."""
        return tuple(entry.sample for entry in self._entries.values())

    def pending(self) -> tuple[PendingWork[L], ...]:
        """Return the work left of every sample in flight, which a forecast adds up."""
        return tuple(
            PendingWork(entry.sample, entry.segment, entry.work, entry.due)
            for entry in self._entries.values()
        )

    def admit_ready(self) -> None:
        """Start the samples whose model and extensions are in memory and need not leave it."""
        for waiting in self._waiting_for_memory():
            self._admit(waiting)

    def plan(self) -> Plan[L] | None:
        """Return the next turn, or None when there is nothing to do. Nothing changes.

        Prompts come first: they are small, and a newcomer joins the next step. Steps alternate
        with all other work, and decodes with loads, so that neither many finished images nor a
        long batch nor a load holds up the others for long. Of each kind of work the caller with the
        least virtual time is first, and work other than steps waits for the others' steps while
        its caller is ahead of them. Quarantine comes before all, then retries of a failed step.
        """
        if (id := self.quarantine.current) and (alone := self._entries[id]).work not in _LOADS:
            return self._plan_alone(alone, in_quarantine=True)
        if self._retries:
            return self._plan_alone(self._entries[next(iter(self._retries))])
        limit = float("inf")
        if self._steps:
            limit = self.shares.limit(self._steps.first(self.shares.turn_time)[1])
        if prompt := self._first(WorkKind.CONDITION, limit):
            return Plan(WorkKind.CONDITION, (prompt.sample,))
        decode = self._first(WorkKind.DECODE, limit)
        pixel_work = decode or self._first(WorkKind.ENCODE, limit)
        load = self._plan_load(limit)
        if self._steps and not ((load or pixel_work) and self._rotation.stepped):
            return self._plan_step()
        if load is not None and (self._rotation.decoded or not decode):
            return load
        return Plan(pixel_work.work, (pixel_work.sample,)) if pixel_work else None

    def charge(self, plan: Plan[L], seconds: float) -> None:
        """Charge the callers of a plan, before `settle`, with the seconds that its turn took."""
        self.shares.charge(plan, seconds, self._steps.count)

    def settle(self, plan: Plan[L], results: Sequence[Sample[L]]) -> tuple[Sample[L], ...]:
        """Take the results of a plan; return the samples whose segment is done, which leave.

        Samples that a turn failed for are cancelled instead of being among the results.
        """
        self._turn += plan.work is WorkKind.STEP
        self._rotation = self._rotation.next(plan.work)
        done = []
        for sample in results:
            entry = self._entries[sample.id]
            work = self._work_after(plan.work, sample, entry.segment)
            if work is None:
                self.remove(sample.id)
                done.append(sample)
            elif work is entry.work and sample.is_shallow == entry.sample.is_shallow:
                entry.sample = sample
            else:
                self._move(entry, sample, work)
            if plan.work is WorkKind.STEP:
                self._retries.pop(sample.id, None)
            if work is WorkKind.STEP:
                self.quarantine.settle(sample.id, sample.index)
        return tuple(done)

    def can_be_followed(self, plan: Plan[L]) -> bool:
        """Return whether another step may be planned before one is done: no end, and no trial."""
        if plan.alone or self._retries:
            return False
        return all(s.index + 1 < self._entries[s.id].segment.stop for s in plan.samples)

    def take_back(self, plan: Plan[L]) -> None:
        """Undo a settled step that has failed after all: its samples take it again, each alone."""
        for sample in plan.samples:
            self._move(self._entries[sample.id], sample, WorkKind.STEP)
        self.settle_failed(plan)

    def settle_failed(self, plan: Plan[L]) -> None:
        """Settle a step that failed: each of its samples takes it again, alone and before others.

        So the next failure has one sample to blame. Samples that have left are passed over.
        """
        ids = (sample.id for sample in plan.samples if sample.id in self._entries)
        self._retries.update(dict.fromkeys(ids))
        self.settle(plan, ())

    def _plan_alone(self, entry: QueuedSample[L], *, in_quarantine: bool = False) -> Plan[L]:
        sample, lanes = entry.sample, 0
        if entry.work is WorkKind.STEP:
            lanes = self._batch_sizes[sample.model_key].lanes(sample.rows)
        return Plan(entry.work, (sample,), lanes, alone=in_quarantine)

    def _admit(self, waiting: WaitingForMemory[Loadable, L]) -> None:
        for id in waiting.admission.ready:
            entry = waiting.entries[id]
            waiting.residency.record_newcomer(waiting.needs(entry.sample))
            self._move(entry, entry.sample, work_with(waiting.work, entry.sample, entry.segment))

    def _move(self, entry: QueuedSample[L], sample: Sample[L], work: WorkKind) -> None:
        """Let the entry, with this sample, wait for another kind of turn."""
        self._dequeue(entry)
        entry.sample, entry.work = sample, work
        self._queues[work][sample.id] = entry
        self._in_use[sample.model_key] += 1
        if work is WorkKind.STEP:
            self._steps.add(sample, entry.rank)

    def _dequeue(self, entry: QueuedSample[L]) -> None:
        """Let the entry wait for nothing, and undo what was counted for it."""
        sample = entry.sample
        del self._queues[entry.work][sample.id]
        if entry.work is not WorkKind.LOAD:
            self._in_use[sample.model_key] -= 1
        if entry.work is WorkKind.STEP:
            self._steps.remove(sample, entry.rank)

    def _first(self, work: WorkKind, limit: float) -> QueuedSample[L] | None:
        """Return the entry whose caller has the least virtual time, if that is within a limit."""
        queue, time = self._queues[work].values(), self.shares.turn_time
        first = min(queue, key=lambda entry: time(entry.sample.caller), default=None)
        return first if first and time(first.sample.caller) <= limit else None

    def _in_fair_order(self, work: WorkKind) -> dict[str, QueuedSample[L]]:
        """Return what waits for a kind of work, the caller with the least virtual time first."""
        time = self.shares.turn_time
        queue = self._queues[work].items()
        return dict(sorted(queue, key=lambda item: time(item[1].sample.caller)))

    def _waiting_for_memory(self) -> Iterator[WaitingForMemory[Any, L]]:
        if self._queues[WorkKind.LOAD]:
            in_use = {key for key, count in self._in_use.items() if count}
            loads = self._in_fair_order(WorkKind.LOAD)
            queue = {id: entry for id, entry in loads.items() if not self.quarantine.blocks(id)}
            yield WaitingForMemory(WorkKind.LOAD, queue, self._models, models_needed, in_use)
        if self._queues[WorkKind.ATTACH]:
            yield from self._waiting_for_extensions()

    def _waiting_for_extensions(self) -> Iterator[WaitingForMemory[ExtensionKey, L]]:
        queue = self._in_fair_order(WorkKind.ATTACH)
        for key in {entry.sample.model_key for entry in queue.values()}:
            entries = {id: entry for id, entry in queue.items() if entry.sample.model_key == key}
            residency, in_use = self._extensions[key], self._extensions_in_use(key)
            yield WaitingForMemory(WorkKind.ATTACH, entries, residency, extensions_needed, in_use)

    def _extensions_in_use(self, key: ModelKey) -> set[ExtensionKey]:
        """Return the extensions that samples of a model use, or will use at their next turn."""
        queues = (self._queues[work].values() for work in _USES_EXTENSIONS)
        samples = (entry.sample for queue in queues for entry in queue)
        return {ref.key for s in samples if s.model_key == key for ref in s.active_extensions}

    def _plan_load(self, limit: float) -> Plan[L] | None:
        """Return the LOAD or ATTACH whose first sample's caller has the least virtual time.

        Of several such, the one whose sample arrived first; None if they are beyond the limit.
        """
        time = self.shares.turn_time
        found = (waiting.first_load(time) for waiting in self._waiting_for_memory())
        loads = [load for load in found if load is not None and load[0] <= limit]
        return min(loads)[-1] if loads else None

    def _plan_step(self) -> Plan[L]:
        shares, entries = self.shares, self._entries
        key, owner = self._steps.first(shares.turn_time)
        size = self._batch_sizes[key.model]
        order = self._steps.in_fair_order(
            key, owner, shares.place_time, lambda id: shares.place_seconds(entries[id].sample)
        )
        ranked = ((id, entries[id].sample.rows) for id in order)
        ids = choose_batch(ranked, rows=size.sample_rows)
        samples = tuple(entries[id].sample for id in ids)
        return Plan(WorkKind.STEP, samples, size.lanes(sum(sample.rows for sample in samples)))

    def _work_after(
        self, work: WorkKind, sample: Sample[L], segment: StageSegment
    ) -> WorkKind | None:
        """Return what a sample needs after a turn; None when its segment is done."""
        if work in _LOADS:  # it may need more than was loaded, but starts before that can leave
            if work is WorkKind.LOAD:
                complete = self._models.has_all(models_needed(sample))
            else:
                residency = self._extensions[sample.model_key]
                complete = residency.has_all(extensions_needed(sample))
            return work_with(work, sample, segment) if complete else work
        return work_after(work, sample, segment)
