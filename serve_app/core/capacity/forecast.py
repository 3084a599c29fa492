"""What a queue still takes: its GPU seconds in total, and those of each image in it.

No clock, and nothing runs: the forecast follows what the scheduler would do, a run of equal turns
at a time. Images that arrive later are unknown, so a forecast has none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind, turn_kind
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.keys import BatchKey
from serve_app.core.diffusion.sample import Sample, StageSegment, for_stage
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

    Images step in the batches that the scheduler would choose. A model or LoRA that several images
    wait for is loaded once.
    """
    pending = list(pending)
    shares = {work.sample.id: 0.0 for work in pending}

    def charge(turn: TurnKind, times: int, batch: Sequence[PendingWork[Any]]) -> None:
        rows = [work.sample.spec.rows for work in batch]
        seconds = times * costs.seconds(turn)
        for work, share in zip(batch, share_by_rows(rows, seconds), strict=True):
            shares[work.sample.id] += share

    waiting_for: dict[TurnKind, list[PendingWork[Any]]] = {}
    by_key: dict[BatchKey, list[PendingWork[Any]]] = {}
    for work in pending:
        for turn in _loads(work):
            waiting_for.setdefault(turn, []).append(work)
        for kind in _single_sample_work(work):
            charge(turn_kind(kind, work.sample), 1, [work])
        if work.steps_left:
            by_key.setdefault(work.sample.batch_key, []).append(work)
    for turn, waiting in waiting_for.items():
        charge(turn, 1, waiting)
    for queue in by_key.values():
        size = costs.batch_size(queue[0].sample.model_key)
        for times, batch in _equal_batches(queue, size):
            lanes = size.lanes(sum(work.sample.spec.rows for work in batch))
            charge(turn_kind(WorkKind.STEP, batch[0].sample, lanes=lanes), times, batch)
    return Forecast(sum(shares.values()), shares)


def amortized_seconds(pending: Iterable[PendingWork[Any]], costs: CostTable) -> float:
    """Return the GPU seconds that images cost a busy device, where every batch is full.

    Alone, an image would also pay for the lanes that it leaves empty.
    """
    seconds = 0.0
    for work in pending:
        sample = work.sample
        size = costs.batch_size(sample.model_key)
        lanes = size.lanes(size.images * sample.spec.rows)
        step = costs.seconds(turn_kind(WorkKind.STEP, sample, lanes=lanes))
        seconds += work.steps_left * step / size.images
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
        size = costs.batch_size(sample.model_key)
        together = size.images if images is None else min(images, size.images)
        lanes = size.lanes(together * sample.spec.rows)
        seconds += work.steps_left * costs.seconds(turn_kind(WorkKind.STEP, sample, lanes=lanes))
        seconds += sum(costs.seconds(turn_kind(kind, sample)) for kind in _single_sample_work(work))
    return seconds


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


def _equal_batches(
    queue: Iterable[PendingWork[Any]], size: BatchSize
) -> Iterator[tuple[int, list[PendingWork[Any]]]]:
    """Yield the batches that step, and for how many turns, until all have taken their steps."""
    urgent = sorted(queue, key=lambda work: work.due)
    steps_left = {work.sample.id: work.steps_left for work in urgent}
    while urgent:
        # The images behind the first `size.rows` would find no row free.
        first = {work.sample.id: work for work in urgent[: size.rows]}
        ranked = ((id, work.sample.spec.rows) for id, work in first.items())
        ids = choose_batch(ranked, images=size.images, rows=size.rows)
        times = min(steps_left[id] for id in ids)
        yield times, [first[id] for id in ids]
        for id in ids:
            steps_left[id] -= times
        urgent = [work for work in urgent if steps_left[work.sample.id]]
