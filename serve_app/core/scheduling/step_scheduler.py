"""`StepScheduler`: which samples do what next. It decides, it never runs anything.

Knows no tensors, threads or clock. Three verbs a turn: `plan` says what to do, somebody does it,
`settle` is told what became of it. Commands (`add`, `cancel`, `evict`) come between turns, from
the one thread that owns it, so a plan is never half true.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.core.diffusion.keys import BatchKey, ModelKey
from serve_app.core.diffusion.sample import L, Sample, StageSegment
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.residency import Residency
from serve_app.core.scheduling.work import BatchSize, PendingWork, Plan, WorkKind

_Loadable = TypeVar("_Loadable", ModelKey, str)  # a model, or a LoRA of one


@dataclass(slots=True)
class _QueuedSample(Generic[L]):
    sample: Sample[L]
    segment: StageSegment
    due: int  # see `policy.choose_batch`
    arrival: int  # of arrival
    work: WorkKind = WorkKind.LOAD

    @property
    def rank(self) -> tuple[int, int, str]:
        """The lower, the more urgent."""
        return self.due, self.arrival, self.sample.id


class StepScheduler(Generic[L]):
    """The samples of one replica and what each needs next.

    `here` are the models in memory with their batches, of which there is `room` for so many, each
    with room for so many LoRAs.
    """

    def __init__(
        self,
        batch_sizes: Mapping[ModelKey, BatchSize],
        *,
        model_capacity: int = 1,
        lora_capacity: int = 1,
    ) -> None:
        self._entries: dict[str, _QueuedSample[L]] = {}  # in order of arrival
        self._queues: dict[WorkKind, dict[str, _QueuedSample[L]]] = {work: {} for work in WorkKind}
        self._ranked: dict[BatchKey, list[tuple[int, int, str]]] = {}  # those that step
        self._in_use = Counter[ModelKey]()  # by model: all that wait for it no more
        self._arrived = 0
        self._sizes = dict(batch_sizes)
        self._models = Residency[ModelKey](batch_sizes, model_capacity)
        self._lora_capacity = lora_capacity
        self._loras = {model: Residency[str]((), lora_capacity) for model in batch_sizes}
        self._turn = 0  # step turns planned so far
        self._stepped_last = False
        self._decoded_last = False  # of the turns aside

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def __repr__(self) -> str:
        counts = {work: len(queue) for work, queue in self._queues.items()}
        waiting = sum(counts.values()) - counts[WorkKind.STEP] - counts[WorkKind.DECODE]
        return (
            f"<StepScheduler {waiting} waiting | {counts[WorkKind.STEP]} stepping in "
            f"{len(self._ranked)} shapes | {counts[WorkKind.DECODE]} decoding>"
        )

    def add(self, sample: Sample[L], segment: StageSegment) -> None:
        """The sample will be walked to the leg's end. Raises `ValueError` if it is here already."""
        if sample.id in self._entries:
            raise ValueError(f"sample {sample.id} is already here")
        if sample.index >= segment.stop and not segment.last:
            raise ValueError(f"sample {sample.id} has no step to take before {segment.stop}")
        due = self._turn + max(0, segment.stop - sample.index)
        self._entries[sample.id] = entry = _QueuedSample(sample, segment, due, self._arrived)
        self._queues[WorkKind.LOAD][sample.id] = entry
        self._arrived += 1

    def cancel(self, id: str) -> bool:
        """The sample is gone from every queue; whether it was there."""
        if id not in self._entries:
            return False
        self.evict(id)
        return True

    def evict(self, id: str) -> Sample[L]:
        """The sample is gone from here and handed back as it stands. Raises `KeyError`."""
        entry = self._entries.pop(id)
        self._dequeue(entry)
        return entry.sample

    def set_resident(
        self,
        batch_sizes: Mapping[ModelKey, BatchSize],
        loras: Mapping[ModelKey, Collection[str]] | None = None,
    ) -> None:
        """These are the models in memory now, and the LoRAs attached to each; what was known of
        their order is kept."""
        self._sizes = dict(batch_sizes)
        self._models.set_resident(batch_sizes)
        self._loras = {
            model: self._loras.get(model) or Residency[str]((), self._lora_capacity)
            for model in batch_sizes
        }
        for model, seats in self._loras.items():
            seats.set_resident((loras or {}).get(model, ()))

    def samples(self) -> tuple[Sample[L], ...]:
        """Everything in flight, in order of arrival."""
        return tuple(entry.sample for entry in self._entries.values())

    def pending(self) -> tuple[PendingWork[L], ...]:
        """What is left of everything in flight: what a forecast adds up."""
        return tuple(
            PendingWork(e.sample, e.segment, e.work, e.due) for e in self._entries.values()
        )

    def plan(self) -> Plan[L] | None:
        """The next turn, or None when nothing is here.

        Prompts first: they are small, and a newcomer joins the next step. Image work and steps
        take turns, so that neither a crowd of finished images nor a long batch holds up the other.
        So do finished pictures and loads, which hold up whoever waits for a picture.
        """
        to_load = self._plan_load()
        for entry in self._queues[WorkKind.CONDITION].values():
            return Plan(WorkKind.CONDITION, (entry.sample,))
        decoding = self._queues[WorkKind.DECODE]
        pixels = next(iter((decoding or self._queues[WorkKind.ENCODE]).values()), None)
        aside = to_load or pixels
        if self._ranked and not (aside and self._stepped_last):
            return self._plan_step()
        self._stepped_last = False
        if to_load is not None and (self._decoded_last or not decoding):
            self._decoded_last = False
            return to_load
        if pixels is None:
            return None
        self._decoded_last = pixels.work is WorkKind.DECODE
        return Plan(pixels.work, (pixels.sample,))

    def settle(self, plan: Plan[L], results: Sequence[Sample[L]]) -> tuple[Sample[L], ...]:
        """Takes what became of a plan's samples; returns those whose leg is done and now left."""
        done = []
        for sample in results:
            entry = self._entries[sample.id]
            following: WorkKind | None
            if plan.work in (
                WorkKind.LOAD,
                WorkKind.ATTACH,
            ):  # who has all begins, before it may go again
                ready = (
                    self._models.has_all(_models_needed(sample))
                    if plan.work is WorkKind.LOAD
                    else self._loras[sample.model_key].has_all(_loras_needed(sample))
                )
                following = _after(plan.work, sample, entry.segment) if ready else plan.work
            else:
                following = _next_work(plan.work, sample, entry.segment)
            if following is None:
                self.evict(sample.id)
                done.append(sample)
            elif following is entry.work:
                entry.sample = sample
            else:
                self._move(entry, sample, following)
        return tuple(done)

    def _move(self, entry: _QueuedSample[L], sample: Sample[L], work: WorkKind) -> None:
        """The entry, as it is now, waits for another kind of turn."""
        self._dequeue(entry)
        entry.sample, entry.work = sample, work
        self._queues[work][sample.id] = entry
        self._in_use[sample.model_key] += 1
        if work is WorkKind.STEP:
            insort(self._ranked.setdefault(sample.batch_key, []), entry.rank)

    def _dequeue(self, entry: _QueuedSample[L]) -> None:
        """The entry waits for nothing; what was counted of it is put right."""
        sample = entry.sample
        del self._queues[entry.work][sample.id]
        if entry.work is not WorkKind.LOAD:
            self._in_use[sample.model_key] -= 1
        if entry.work is WorkKind.STEP:
            ranks = self._ranked[sample.batch_key]
            del ranks[bisect_left(ranks, entry.rank)]
            if not ranks:
                del self._ranked[sample.batch_key]

    def _plan_load(self) -> Plan[L] | None:
        """Whoever's model and LoRAs are in memory, and need not leave it, waits no more; of the
        others, the turn that the first one needs."""
        wanted = []
        if self._queues[WorkKind.LOAD]:
            busy = {model for model, entries in self._in_use.items() if entries}
            waiting = self._queues[WorkKind.LOAD]
            wanted.append(
                self._plan_load_of(WorkKind.LOAD, self._models, waiting, _models_needed, busy)
            )
        if attaching := self._queues[WorkKind.ATTACH]:
            for model in {e.sample.model_key for e in attaching.values()}:
                waiting = {id: e for id, e in attaching.items() if e.sample.model_key == model}
                busy_loras, seats = self._loras_in_use(model), self._loras[model]
                wanted.append(
                    self._plan_load_of(WorkKind.ATTACH, seats, waiting, _loras_needed, busy_loras)
                )
        plans = [plan for plan in wanted if plan is not None]
        return min(plans, key=lambda p: self._entries[p.samples[0].id].arrival, default=None)

    def _plan_load_of(
        self,
        work: WorkKind,
        seats: Residency[_Loadable],
        waiting: Mapping[str, _QueuedSample[L]],
        needs: Callable[[Sample[L]], tuple[_Loadable, ...]],
        busy: Collection[_Loadable],
    ) -> Plan[L] | None:
        """LOAD or ATTACH, among those that wait for it."""
        seating = seats.admit([(id, needs(e.sample)) for id, e in waiting.items()], busy)
        for entry in [waiting[id] for id in seating.ready]:
            self._move(entry, entry.sample, _after(work, entry.sample, entry.segment))
        if seating.load is None:
            return None
        samples = [e.sample for e in waiting.values() if seating.load in needs(e.sample)]
        return Plan(work, tuple(samples), load=seating.load, evict=seating.evict)

    def _loras_in_use(self, model: ModelKey) -> set[str]:
        """The LoRAs that samples of a model wear, or will at their next turn."""
        queues = (
            self._queues[work] for work in (WorkKind.CONDITION, WorkKind.ENCODE, WorkKind.STEP)
        )
        entries = (entry for queue in queues for entry in queue.values())
        return {
            lora.name
            for e in entries
            if e.sample.model_key == model
            for lora in e.sample.active_loras
        }

    def _plan_step(self) -> Plan[L]:
        ranks = min(self._ranked.values())  # those of the most urgent one's shape
        first = self._entries[ranks[0][-1]].sample
        size = self._sizes[first.model_key]
        in_order = ((id, self._entries[id].sample.spec.rows) for *_, id in ranks)
        ids = choose_batch(in_order, images=size.images, rows=size.rows)
        samples = tuple(self._entries[id].sample for id in ids)
        self._turn += 1
        self._stepped_last = True
        return Plan(WorkKind.STEP, samples, size.lanes or sum(s.spec.rows for s in samples))


def _models_needed(sample: Sample[L]) -> tuple[ModelKey, ...]:
    return (sample.model_key,)


def _loras_needed(sample: Sample[L]) -> tuple[str, ...]:
    return tuple(lora.name for lora in sample.active_loras)


def _after(work: WorkKind, sample: Sample[L], leg: StageSegment) -> WorkKind:
    """What comes when a sample has its model (LOAD), or its LoRAs too (ATTACH)."""
    if sample.index >= leg.stop and sample.latents is not None:
        return WorkKind.DECODE  # a last leg without steps: nothing to condition
    return WorkKind.ATTACH if sample.active_loras and work is WorkKind.LOAD else WorkKind.CONDITION


def _next_work(work: WorkKind, sample: Sample[L], leg: StageSegment) -> WorkKind | None:
    if work is WorkKind.CONDITION and sample.latents is None:
        return WorkKind.ENCODE
    if work is not WorkKind.DECODE and sample.index < leg.stop:
        return WorkKind.STEP
    if work is WorkKind.STEP and leg.last:
        return WorkKind.DECODE
    return None
