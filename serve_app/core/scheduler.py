"""`StepScheduler`: which samples do what next. It decides, it never runs anything.

Knows no tensors, threads or clock. Three verbs a turn: `plan` says what to do, somebody does it,
`settle` is told what became of it. Commands (`add`, `cancel`, `evict`) come between turns, from
the one thread that owns it, so a plan is never half true.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from serve_app.core.policy import Candidate, choose_batch
from serve_app.core.sample import L, Leg, Sample
from serve_app.core.seats import Seats


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
    due: int  # see Candidate

    @property
    def steps(self) -> int:
        """Those it still takes."""
        return max(0, self.leg.stop - self.sample.index)


@dataclass(slots=True)
class _Entry(Generic[L]):
    sample: Sample[L]
    leg: Leg
    work: Work
    due: int  # see Candidate


class StepScheduler(Generic[L]):
    """The samples of one replica and what each needs next.

    `here` are the models in memory with their batches, of which there is `room` for so many, each
    with room for so many LoRAs.
    """

    def __init__(self, here: Mapping[str, BatchSize], *, room: int = 1, lora_room: int = 1) -> None:
        self._entries: dict[str, _Entry[L]] = {}  # in order of arrival
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
        counts = {work: 0 for work in Work}
        for entry in self._entries.values():
            counts[entry.work] += 1
        shapes = len({e.sample.shape for e in self._entries.values()})
        early = (Work.LOAD, Work.ATTACH, Work.CONDITION, Work.ENCODE)
        waiting = sum(counts[work] for work in early)
        return (
            f"<StepScheduler {waiting} waiting | {counts[Work.STEP]} stepping | "
            f"{counts[Work.DECODE]} decoding | {shapes} shapes>"
        )

    def add(self, sample: Sample[L], leg: Leg) -> None:
        """The sample will be walked to the leg's end. Raises `ValueError` if it is here already."""
        if sample.id in self._entries:
            raise ValueError(f"sample {sample.id} is already here")
        if sample.index >= leg.stop and not leg.last:
            raise ValueError(f"sample {sample.id} has no step to take before {leg.stop}")
        due = self._turn + max(0, leg.stop - sample.index)
        self._entries[sample.id] = _Entry(sample, leg, Work.LOAD, due)

    def cancel(self, id: str) -> bool:
        """The sample is gone from every queue; whether it was there."""
        return self._entries.pop(id, None) is not None

    def evict(self, id: str) -> Sample[L]:
        """The sample is gone from here and handed back as it stands. Raises `KeyError`."""
        return self._entries.pop(id).sample

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
        queues: dict[Work, list[_Entry[L]]] = {work: [] for work in Work}
        for entry in self._entries.values():
            queues[entry.work].append(entry)
        if queues[Work.CONDITION]:
            return Plan(Work.CONDITION, (queues[Work.CONDITION][0].sample,))
        stepping, pixels = queues[Work.STEP], queues[Work.DECODE] or queues[Work.ENCODE]
        aside = to_load or pixels
        if stepping and not (aside and self._stepped_last):
            return self._plan_step(stepping)
        if not aside:
            return None
        self._stepped_last = False
        if to_load is not None and (self._decoded_last or not queues[Work.DECODE]):
            self._decoded_last = False
            return to_load
        self._decoded_last = pixels[0].work is Work.DECODE
        return Plan(pixels[0].work, (pixels[0].sample,))

    def settle(self, plan: Plan[L], results: Sequence[Sample[L]]) -> tuple[Sample[L], ...]:
        """Takes what became of a plan's samples; returns those whose leg is done and now left."""
        done = []
        for sample in results:
            entry = self._entries[sample.id]
            entry.sample = sample
            following: Work | None
            if plan.work in (Work.LOAD, Work.ATTACH):  # who has all begins, before it may go again
                seats = self._models if plan.work is Work.LOAD else self._loras[sample.model]
                ready = seats.hold_all(_needs(plan.work, entry))
                following = _after(plan.work, sample, entry.leg) if ready else plan.work
            else:
                following = _next_work(plan.work, sample, entry.leg)
            if following is None:
                done.append(self._entries.pop(sample.id).sample)
            else:
                entry.work = following
        return tuple(done)

    def _to_load(self) -> Plan[L] | None:
        """Whoever's model and LoRAs are in memory, and need not leave it, waits no more; of the
        others, the turn that the first one needs."""
        entries = list(self._entries.values())
        plans = [self._bring(Work.LOAD, self._models, entries)]
        for model in {e.sample.model for e in entries if e.work is Work.ATTACH}:
            of_it = [e for e in entries if e.sample.model == model and e.work is not Work.LOAD]
            plans.append(self._bring(Work.ATTACH, self._loras[model], of_it))
        order = {id: number for number, id in enumerate(self._entries)}
        wanted = [plan for plan in plans if plan is not None]
        return min(wanted, key=lambda plan: order[plan.samples[0].id], default=None)

    def _bring(self, work: Work, seats: Seats, entries: list[_Entry[L]]) -> Plan[L] | None:
        """LOAD or ATTACH, among the entries that it is for."""
        waiting = [e for e in entries if e.work is work]
        seating = seats.seated(
            [(e.sample.id, _needs(work, e)) for e in waiting],
            {name for e in entries if e.work is not work for name in _needs(work, e)},
        )
        for id in seating.begin:
            entry = self._entries[id]
            entry.work = _after(work, entry.sample, entry.leg)
        if seating.load is None:
            return None
        samples = tuple(e.sample for e in waiting if seating.load in _needs(work, e))
        return Plan(work, samples, load=seating.load, drop=seating.drop)

    def _plan_step(self, stepping: list[_Entry[L]]) -> Plan[L]:
        urgent = min(stepping, key=lambda e: e.due)  # whom `choose_batch` begins with
        size = self._sizes[urgent.sample.model]
        ids = choose_batch(
            (Candidate(e.sample.id, e.sample.shape, e.sample.spec.rows, e.due) for e in stepping),
            images=size.images,
            rows=size.rows,
        )
        samples = tuple(self._entries[id].sample for id in ids)
        self._turn += 1
        self._stepped_last = True
        return Plan(Work.STEP, samples, size.lanes or sum(s.spec.rows for s in samples))


def _needs(work: Work, entry: _Entry[L]) -> tuple[str, ...]:
    """What must be in memory for an entry: its model (LOAD), or its LoRAs (ATTACH), which the VAE
    knows nothing of."""
    if work is Work.LOAD:
        return (entry.sample.model,)
    return () if entry.work is Work.DECODE else tuple(lora.name for lora in entry.sample.loras)


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
