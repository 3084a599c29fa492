"""What a queue still takes: its GPU seconds in total, and those of each image in it.

No clock, and nothing runs: the forecast follows what the scheduler would do, a run of equal turns
at a time. Images that arrive later are unknown, so a forecast has none.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind, turn_kind
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.keys import BatchKey
from serve_app.core.diffusion.sample import (
    Sample,
    StageSegment,
    for_stage,
    step_counts,
    steps_until,
)
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind, share_by_rows

_BEFORE_FIRST_STEP = (WorkKind.LOAD, WorkKind.ATTACH, WorkKind.CONDITION)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted GPU seconds, from now until the queue is empty."""

    seconds: float
    shares: dict[str, float]  # of each image, by id; they add up to `seconds`


def forecast(pending: Iterable[PendingWork[Any]], costs: CostTable) -> Forecast:
    """Return what one device takes for all pending work.

    Images step in the batches that the scheduler would choose, except that those with a step cache
    never share one with those without. A model or LoRA that several images wait for is loaded once.
    """
    pending = list(pending)
    shares = {work.sample.id: 0.0 for work in pending}

    def charge(turn: TurnKind, times: int, rows: Mapping[str, int]) -> None:
        seconds = times * costs.seconds(turn)
        for id, share in zip(rows, share_by_rows(list(rows.values()), seconds), strict=True):
            shares[id] += share

    waiting_for: dict[TurnKind, list[PendingWork[Any]]] = {}
    by_key: dict[BatchKey, list[PendingWork[Any]]] = {}
    for work in pending:
        for turn in _loads(work):
            waiting_for.setdefault(turn, []).append(work)
        for kind in _single_sample_work(work):
            charge(turn_kind(kind, work.sample), 1, {work.sample.id: 1})
        if work.steps_left:
            by_key.setdefault(work.sample.usual_batch_key, []).append(work)
    for turn, waiting in waiting_for.items():
        charge(turn, 1, {work.sample.id: work.sample.spec.rows for work in waiting})
    for queue in by_key.values():
        sample = queue[0].sample
        size = costs.batch_size(sample.model_key)
        for batch in _equal_batches(queue, size):
            lanes = size.lanes(sum(batch.rows.values()))
            turn = turn_kind(WorkKind.STEP, sample, lanes=lanes, shallow=batch.shallow)
            charge(turn, batch.times, batch.rows)
    return Forecast(sum(shares.values()), shares)


def amortized_seconds(pending: Iterable[PendingWork[Any]], costs: CostTable) -> float:
    """Return the GPU seconds that images cost a busy device, where every batch is full.

    Alone, an image would also pay for the lanes that it leaves empty.
    """
    seconds = 0.0
    for work in pending:
        sample = work.sample
        images = costs.batch_size(sample.model_key).images
        seconds += steps_seconds(sample, work.segment.stop, costs, images) / images
        seconds += sum(costs.seconds(turn_kind(kind, sample)) for kind in _single_sample_work(work))
    return seconds


def image_seconds(
    pending: Iterable[PendingWork[Any]], costs: CostTable, *, images: int | None = None
) -> float:
    """Return the seconds that one image takes on a device that has what it needs in memory.

    `pending` is the work of one image, which steps in batches of so many, or full ones if there are
    more or if `images` is None. 1: the device is idle.
    """
    seconds = 0.0
    for work in pending:
        sample = work.sample
        most = costs.batch_size(sample.model_key).images
        together = most if images is None else min(images, most)
        seconds += steps_seconds(sample, work.segment.stop, costs, together)
        seconds += sum(costs.seconds(turn_kind(kind, sample)) for kind in _single_sample_work(work))
    return seconds


def steps_seconds(sample: Sample[Any], stop: int, costs: CostTable, images: int) -> float:
    """Return the seconds of the steps that a sample takes to a stop, in batches of `images`."""
    size = costs.batch_size(sample.model_key)
    return sum(
        count
        * costs.seconds(
            turn_kind(
                WorkKind.STEP, sample, lanes=size.lanes(images * kind.rows), shallow=kind.shallow
            )
        )
        for kind, count in step_counts(sample, stop).items()
    )


def mean_step_seconds(sample: Sample[Any], costs: CostTable) -> float:
    """Return the mean seconds of the steps to the end of a sample's schedule, each run alone."""
    stop = len(sample.schedule)
    return steps_seconds(sample, stop, costs, 1) / max(1, stop - sample.index)


def load_seconds(sample: Sample[Any], costs: CostTable) -> float:
    """Return the seconds of loading the sample's model; 0 before that was ever measured."""
    return costs.seconds(turn_kind(WorkKind.LOAD, sample, load=sample.model_key))


def pending_work(sample: Sample[Any], segments: Iterable[StageSegment]) -> list[PendingWork[Any]]:
    """Return what is left of an image, by segment, from the first turn of its current one."""
    pending = []
    for segment in segments:
        if sample.index < segment.stop or segment.last:
            steps_left = max(0, segment.stop - sample.index)
            at_stage = for_stage(sample, segment.stage)
            pending.append(PendingWork(at_stage, segment, WorkKind.CONDITION, due=steps_left))
            sample = replace(sample, index=max(sample.index, segment.stop), inputs=NO_INPUTS)
    return pending


def _loads(pending: PendingWork[Any]) -> Iterator[TurnKind]:
    if pending.work is WorkKind.LOAD:
        yield turn_kind(WorkKind.LOAD, pending.sample, load=pending.sample.model_key)
    elif pending.work is WorkKind.ATTACH:
        for ref in pending.sample.active_extensions:
            yield turn_kind(WorkKind.ATTACH, pending.sample, load=ref.key)


def _single_sample_work(pending: PendingWork[Any]) -> Iterator[WorkKind]:
    """Yield the kinds of turns that a sample does not share with others."""
    sample = pending.sample
    if pending.work in _BEFORE_FIRST_STEP and (pending.steps_left or sample.latents is None):
        yield WorkKind.CONDITION
    if sample.needs_encoding:
        yield WorkKind.ENCODE
    if pending.segment.last:
        yield WorkKind.DECODE


@dataclass(frozen=True, slots=True)
class _Batches:
    """Turns in a row of which each has the same samples, at steps of the same kinds."""

    times: int
    rows: Mapping[str, int]  # of each sample, by id
    shallow: bool


def _equal_batches(queue: Iterable[PendingWork[Any]], size: BatchSize) -> Iterator[_Batches]:
    """Yield the batches that step until all have taken their steps."""
    urgent = sorted(queue, key=lambda work: work.due)
    runs = {work.sample.id: deque(steps_until(work.sample, work.segment.stop)) for work in urgent}
    ids = list(runs)
    while ids:
        shallow = runs[ids[0]][0][0].shallow
        kinds = ((id, runs[id][0][0]) for id in ids)
        ranked = ((id, kind.rows) for id, kind in kinds if kind.shallow is shallow)
        chosen = choose_batch(ranked, rows=size.sample_rows)
        times = min(runs[id][0][1] for id in chosen)
        yield _Batches(times, {id: runs[id][0][0].rows for id in chosen}, shallow)
        for id in chosen:
            kind, left = runs[id].popleft()
            if left > times:
                runs[id].appendleft((kind, left - times))
        ids = [id for id in ids if runs[id]]
