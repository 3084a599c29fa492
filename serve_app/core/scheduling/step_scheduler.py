"""`StepScheduler`: which samples do what next. It decides, it never runs anything.

Knows no tensors, threads or clock. Three verbs a turn: `plan` says what to do, somebody does it,
`settle` is told what became of it. Commands (`add`, `cancel`, `evict`) come between turns, from
the one thread that owns it, so a plan is never half true.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from serve_app.core.diffusion.sample import L, Leg, Sample, Shape
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.residency import Seats


class Work(StrEnum):
    """The kinds of turn. CONDITION, ENCODE and DECODE take one sample at a time."""

    LOAD = "load"  # a model into memory, for all that wait for it
    ATTACH = "attach"  # a LoRA to a model, likewise
    CONDITION = "condition"  # prompt to embeddings; starting noise
    ENCODE = "encode"  # base image to noised latents
    STEP = "step"
    DECODE = "decode"  # latents to pixels


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many samples of a model step together, and in how many rows.

    `lanes` is the fixed number of rows of every UNet call, or 0 for as many rows as there are.
    """

    images: int
    lanes: int

    def __post_init__(self) -> None:
        if self.images < 1 or (self.lanes and self.lanes < 2):
            raise ValueError("at least one image, and room for its two rows")

    @property
    def rows(self) -> int:
        """The most rows of one UNet call."""
        return self.lanes or 2 * self.images


@dataclass(frozen=True, slots=True)
class Plan(Generic[L]):
    """One turn of GPU work, for samples of one model. `lanes` is how many rows the UNet call has,
    padding included; `load` is the model, or the LoRA, that is to come, and `drop` those that make
    room for it."""

    work: Work
    samples: tuple[Sample[L], ...]
    lanes: int = 0
    load: str = ""
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owed(Generic[L]):
    """What is left of a sample here: its leg, and the work that it waits for next."""

    sample: Sample[L]
    leg: Leg
    work: Work
    due: int  # see `policy.choose_batch`

    @property
    def steps(self) -> int:
        """Those it still takes."""
        return max(0, self.leg.stop - self.sample.index)


@dataclass(slots=True)
class _Entry(Generic[L]):
    sample: Sample[L]
    leg: Leg
    due: int  # see `policy.choose_batch`
    number: int  # of arrival
    work: Work = Work.LOAD

    @property
    def rank(self) -> tuple[int, int, str]:
        """The lower, the more urgent."""
        return self.due, self.number, self.sample.id


class StepScheduler(Generic[L]):
    """The samples of one replica and what each needs next.

    `here` are the models in memory with their batches, of which there is `room` for so many, each
    with room for so many LoRAs.
    """

    def __init__(self, here: Mapping[str, BatchSize], *, room: int = 1, lora_room: int = 1) -> None:
        self._entries: dict[str, _Entry[L]] = {}  # in order of arrival
        self._queues: dict[Work, dict[str, _Entry[L]]] = {work: {} for work in Work}
        self._ranked: dict[Shape, list[tuple[int, int, str]]] = {}  # those that step
        self._served = Counter[str]()  # by model: all that wait for it no more
        self._arrived = 0
        self._sizes = dict(here)
        self._models = Seats(here, room)
        self._lora_room = lora_room
        self._loras = {model: Seats((), lora_room) for model in here}
        self._turn = 0  # step turns planned so far
        self._stepped_last = False
        self._decoded_last = False  # of the turns aside

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def __repr__(self) -> str:
        counts = {work: len(queue) for work, queue in self._queues.items()}
        waiting = sum(counts.values()) - counts[Work.STEP] - counts[Work.DECODE]
        return (
            f"<StepScheduler {waiting} waiting | {counts[Work.STEP]} stepping in "
            f"{len(self._ranked)} shapes | {counts[Work.DECODE]} decoding>"
        )

    def add(self, sample: Sample[L], leg: Leg) -> None:
        """The sample will be walked to the leg's end. Raises `ValueError` if it is here already."""
        if sample.id in self._entries:
            raise ValueError(f"sample {sample.id} is already here")
        if sample.index >= leg.stop and not leg.last:
            raise ValueError(f"sample {sample.id} has no step to take before {leg.stop}")
        due = self._turn + max(0, leg.stop - sample.index)
        self._entries[sample.id] = entry = _Entry(sample, leg, due, self._arrived)
        self._queues[Work.LOAD][sample.id] = entry
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
        self._leave(entry)
        return entry.sample

    def hold(
        self, here: Mapping[str, BatchSize], loras: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """These are the models in memory now, and the LoRAs attached to each; what was known of
        their order is kept."""
        self._sizes = dict(here)
        self._models.hold(here)
        self._loras = {
            model: self._loras.get(model) or Seats((), self._lora_room) for model in here
        }
        for model, seats in self._loras.items():
            seats.hold((loras or {}).get(model, ()))

    def samples(self) -> tuple[Sample[L], ...]:
        """Everything in flight, in order of arrival."""
        return tuple(entry.sample for entry in self._entries.values())

    def owed(self) -> tuple[Owed[L], ...]:
        """What is left of everything in flight: what a forecast adds up."""
        return tuple(Owed(e.sample, e.leg, e.work, e.due) for e in self._entries.values())

    def plan(self) -> Plan[L] | None:
        """The next turn, or None when nothing is here.

        Prompts first: they are small, and a newcomer joins the next step. Image work and steps
        take turns, so that neither a crowd of finished images nor a long batch holds up the other.
        So do finished pictures and loads, which hold up whoever waits for a picture.
        """
        to_load = self._to_load()
        for entry in self._queues[Work.CONDITION].values():
            return Plan(Work.CONDITION, (entry.sample,))
        decoding = self._queues[Work.DECODE]
        pixels = next(iter((decoding or self._queues[Work.ENCODE]).values()), None)
        aside = to_load or pixels
        if self._ranked and not (aside and self._stepped_last):
            return self._plan_step()
        self._stepped_last = False
        if to_load is not None and (self._decoded_last or not decoding):
            self._decoded_last = False
            return to_load
        if pixels is None:
            return None
        self._decoded_last = pixels.work is Work.DECODE
        return Plan(pixels.work, (pixels.sample,))

    def settle(self, plan: Plan[L], results: Sequence[Sample[L]]) -> tuple[Sample[L], ...]:
        """Takes what became of a plan's samples; returns those whose leg is done and now left."""
        done = []
        for sample in results:
            entry = self._entries[sample.id]
            following: Work | None
            if plan.work in (Work.LOAD, Work.ATTACH):  # who has all begins, before it may go again
                seats = self._models if plan.work is Work.LOAD else self._loras[sample.model]
                ready = seats.hold_all(_needs(plan.work, sample))
                following = _after(plan.work, sample, entry.leg) if ready else plan.work
            else:
                following = _next_work(plan.work, sample, entry.leg)
            if following is None:
                self.evict(sample.id)
                done.append(sample)
            elif following is entry.work:
                entry.sample = sample
            else:
                self._move(entry, sample, following)
        return tuple(done)

    def _move(self, entry: _Entry[L], sample: Sample[L], work: Work) -> None:
        """The entry, as it is now, waits for another kind of turn."""
        self._leave(entry)
        entry.sample, entry.work = sample, work
        self._queues[work][sample.id] = entry
        self._served[sample.model] += 1
        if work is Work.STEP:
            insort(self._ranked.setdefault(sample.shape, []), entry.rank)

    def _leave(self, entry: _Entry[L]) -> None:
        """The entry waits for nothing; what was counted of it is put right."""
        sample = entry.sample
        del self._queues[entry.work][sample.id]
        if entry.work is not Work.LOAD:
            self._served[sample.model] -= 1
        if entry.work is Work.STEP:
            ranks = self._ranked[sample.shape]
            del ranks[bisect_left(ranks, entry.rank)]
            if not ranks:
                del self._ranked[sample.shape]

    def _to_load(self) -> Plan[L] | None:
        """Whoever's model and LoRAs are in memory, and need not leave it, waits no more; of the
        others, the turn that the first one needs."""
        wanted = []
        if self._queues[Work.LOAD]:
            busy = {model for model, entries in self._served.items() if entries}
            wanted.append(self._bring(Work.LOAD, self._models, self._queues[Work.LOAD], busy))
        if attaching := self._queues[Work.ATTACH]:
            for model in {e.sample.model for e in attaching.values()}:
                waiting = {id: e for id, e in attaching.items() if e.sample.model == model}
                wanted.append(
                    self._bring(Work.ATTACH, self._loras[model], waiting, self._worn(model))
                )
        plans = [plan for plan in wanted if plan is not None]
        return min(plans, key=lambda p: self._entries[p.samples[0].id].number, default=None)

    def _bring(
        self, work: Work, seats: Seats, waiting: Mapping[str, _Entry[L]], busy: Collection[str]
    ) -> Plan[L] | None:
        """LOAD or ATTACH, among those that wait for it."""
        seating = seats.seated([(id, _needs(work, e.sample)) for id, e in waiting.items()], busy)
        for entry in [waiting[id] for id in seating.begin]:
            self._move(entry, entry.sample, _after(work, entry.sample, entry.leg))
        if seating.load is None:
            return None
        samples = [e.sample for e in waiting.values() if seating.load in _needs(work, e.sample)]
        return Plan(work, tuple(samples), load=seating.load, drop=seating.drop)

    def _worn(self, model: str) -> set[str]:
        """The LoRAs that samples of a model wear, or will at their next turn."""
        queues = (self._queues[work] for work in (Work.CONDITION, Work.ENCODE, Work.STEP))
        entries = (entry for queue in queues for entry in queue.values())
        return {lora.name for e in entries if e.sample.model == model for lora in e.sample.loras}

    def _plan_step(self) -> Plan[L]:
        ranks = min(self._ranked.values())  # those of the most urgent one's shape
        first = self._entries[ranks[0][-1]].sample
        size = self._sizes[first.model]
        in_order = ((id, self._entries[id].sample.spec.rows) for *_, id in ranks)
        ids = choose_batch(in_order, images=size.images, rows=size.rows)
        samples = tuple(self._entries[id].sample for id in ids)
        self._turn += 1
        self._stepped_last = True
        return Plan(Work.STEP, samples, size.lanes or sum(s.spec.rows for s in samples))


def _needs(work: Work, sample: Sample[L]) -> tuple[str, ...]:
    """What must be in memory for a sample: its model (LOAD), or its LoRAs (ATTACH)."""
    return (sample.model,) if work is Work.LOAD else tuple(lora.name for lora in sample.loras)


def _after(work: Work, sample: Sample[L], leg: Leg) -> Work:
    """What comes when a sample has its model (LOAD), or its LoRAs too (ATTACH)."""
    if sample.index >= leg.stop and sample.latents is not None:
        return Work.DECODE  # a last leg without steps: nothing to condition
    return Work.ATTACH if sample.loras and work is Work.LOAD else Work.CONDITION


def _next_work(work: Work, sample: Sample[L], leg: Leg) -> Work | None:
    if work is Work.CONDITION and sample.latents is None:
        return Work.ENCODE
    if work is not Work.DECODE and sample.index < leg.stop:
        return Work.STEP
    if work is Work.STEP and leg.last:
        return Work.DECODE
    return None
