"""`QueuedSample`: a sample and what it waits for; and the samples that wait for memory."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.core.caller import Caller
from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import L, Sample, StageSegment
from serve_app.core.scheduling.residency import Admission, Residency
from serve_app.core.scheduling.step_queue import Rank
from serve_app.core.scheduling.work import Plan, WorkKind

Loadable = TypeVar("Loadable", ModelKey, ExtensionKey)


@dataclass(slots=True)
class QueuedSample(Generic[L]):
    """A sample of the scheduler, which alone changes it."""

    sample: Sample[L]
    segment: StageSegment
    due: int  # a turn; see `choose_batch`
    arrival: int  # grows with each sample
    work: WorkKind = WorkKind.LOAD

    @property
    def rank(self) -> Rank:
        """The urgency: the lower, the more urgent."""
        return self.due, self.arrival, self.sample.id


@dataclass(frozen=True, slots=True)
class WaitingForMemory(Generic[Loadable, L]):
    """Samples that wait for a LOAD, or for an ATTACH to one model; whose turn it is comes first."""

    work: WorkKind
    entries: Mapping[str, QueuedSample[L]]
    residency: Residency[Loadable]
    needs: Callable[[Sample[L]], tuple[Loadable, ...]]
    in_use: Collection[Loadable]

    @property
    def admission(self) -> Admission[Loadable]:
        """Which of them may start, and what to load for the first that can't."""
        needs = [(id, self.needs(entry.sample)) for id, entry in self.entries.items()]
        return self.residency.admission(needs, self.in_use)

    def plan(self) -> Plan[L] | None:
        """Return the turn that the first sample needs which may not start.

        All samples that need the same start with it, so models do not take turns faster than work
        is done with them.
        """
        admission = self.admission
        if admission.load is None:
            return None
        samples = (entry.sample for entry in self.entries.values())
        waiting = tuple(sample for sample in samples if admission.load in self.needs(sample))
        return Plan(self.work, waiting, load=admission.load, evict=admission.evict)

    def first_load(self, time: Callable[[Caller], float]) -> tuple[float, int, Plan[L]] | None:
        """Return the turn of `plan` after what is the least of the load that comes first.

        That is its caller's virtual time and, among equals, the arrival of its first sample.
        """
        plan = self.plan()
        if plan is None:
            return None
        first = plan.samples[0]
        return time(first.caller), self.entries[first.id].arrival, plan


def models_needed(sample: Sample[L]) -> tuple[ModelKey, ...]:
    """Return the models that a sample needs in memory."""
    return (sample.model_key,)


def extensions_needed(sample: Sample[L]) -> tuple[ExtensionKey, ...]:
    """Return the extensions that a sample needs attached."""
    return tuple(ref.key for ref in sample.active_extensions)


def work_with(work: WorkKind, sample: Sample[L], segment: StageSegment) -> WorkKind:
    """Return what a sample needs that has its model (LOAD), or its extensions too (ATTACH)."""
    if sample.index >= segment.stop and sample.latents is not None:
        return WorkKind.DECODE  # a last segment without steps: nothing to condition
    attaches = work is WorkKind.LOAD and sample.active_extensions
    return WorkKind.ATTACH if attaches else WorkKind.CONDITION


def work_after(work: WorkKind, sample: Sample[L], segment: StageSegment) -> WorkKind | None:
    """Return what a sample needs after a turn of its own; None when its segment is done."""
    if work is WorkKind.CONDITION and sample.latents is None:
        return WorkKind.ENCODE
    if work is not WorkKind.DECODE and sample.index < segment.stop:
        return WorkKind.STEP
    return WorkKind.DECODE if work is WorkKind.STEP and segment.last else None
