"""What a queue still takes: GPU seconds in all, and those of each image in it.

Knows no clock and runs nothing: it walks through what the scheduler would do, a stretch of equal
turns at a time. Nobody can know who comes later, so nobody else comes in a forecast.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind, share_by_rows, turn_kind
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.sample import Sample, StageSegment, for_stage
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind

_BEFORE_FIRST_STEP = (WorkKind.LOAD, WorkKind.ATTACH, WorkKind.CONDITION)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds of GPU work, from now until nothing is left of it."""

    seconds: float
    shares: dict[str, float]  # of each image, by id: they add up to it


def forecast(pending: Iterable[PendingWork[Any]], costs: CostTable) -> Forecast:
    """What one device takes for all that is owed.

    Steps are as many as the batches that the scheduler would choose. A model or LoRA that somebody
    waits for is loaded once.
    """
    pending = list(pending)
    spent = {one.sample.id: 0.0 for one in pending}

    def charge(turn: TurnKind, times: int, of: Sequence[PendingWork[Any]]) -> None:
        rows = [one.sample.spec.rows for one in of]
        for one, share in zip(of, share_by_rows(rows, times * costs.seconds(turn)), strict=True):
            spent[one.sample.id] += share

    loads: dict[TurnKind, list[PendingWork[Any]]] = {}
    shapes: dict[Any, list[PendingWork[Any]]] = {}
    for one in pending:
        for turn in _to_load(one):
            loads.setdefault(turn, []).append(one)
        for work in _single_sample_work(one):
            charge(turn_kind(work, one.sample), 1, [one])
        if one.steps_left:
            shapes.setdefault(one.sample.batch_key, []).append(one)
    for turn, waiting in loads.items():
        charge(turn, 1, waiting)
    for queue in shapes.values():
        size = costs.batch_size(queue[0].sample.model_key)
        for times, batch in _equal_batches(queue, size):
            lanes = size.lanes or sum(one.sample.spec.rows for one in batch)
            charge(turn_kind(WorkKind.STEP, batch[0].sample, lanes=lanes), times, batch)
    return Forecast(sum(spent.values()), spent)


def amortized_seconds(pending: Iterable[PendingWork[Any]], costs: CostTable) -> float:
    """GPU seconds that images cost a busy device: each beside as many like it as step together.
    Alone it would pay for all the lanes that it leaves empty."""
    seconds = 0.0
    for one in pending:
        sample = one.sample
        size = costs.batch_size(sample.model_key)
        lanes = size.lanes or size.images * sample.spec.rows
        step = costs.seconds(turn_kind(WorkKind.STEP, sample, lanes=lanes))
        seconds += one.steps_left * step / size.images
        seconds += sum(costs.seconds(turn_kind(work, sample)) for work in _single_sample_work(one))
    return seconds


def pending_work(sample: Sample[Any], segments: Iterable[StageSegment]) -> list[PendingWork[Any]]:
    """What is left of an image, leg by leg: of the one that it is on, from its first turn on."""
    ahead = []
    for leg in segments:
        if sample.index < leg.stop or leg.last:
            left = max(0, leg.stop - sample.index)
            here = for_stage(sample, leg.stage)
            ahead.append(PendingWork(here, leg, WorkKind.CONDITION, due=left))
            sample = replace(sample, index=max(sample.index, leg.stop), inputs=NO_INPUTS)
    return ahead


def _to_load(one: PendingWork[Any]) -> Iterator[TurnKind]:
    if one.work is WorkKind.LOAD:
        yield turn_kind(WorkKind.LOAD, one.sample, load=one.sample.model_key)
    elif one.work is WorkKind.ATTACH:
        for lora in one.sample.active_loras:
            yield turn_kind(WorkKind.ATTACH, one.sample, load=lora.name)


def _single_sample_work(one: PendingWork[Any]) -> Iterator[WorkKind]:
    """The turns that a sample has to itself."""
    sample = one.sample
    if one.work in _BEFORE_FIRST_STEP and (one.steps_left or sample.latents is None):
        yield WorkKind.CONDITION
    if sample.latents is None and sample.inputs.init_image is not None:
        yield WorkKind.ENCODE
    if one.segment.last:
        yield WorkKind.DECODE


def _equal_batches(
    queue: Iterable[PendingWork[Any]], size: BatchSize
) -> Iterator[tuple[int, list[PendingWork[Any]]]]:
    """Who steps together and for how many turns, until all have taken their steps."""
    urgent = sorted(queue, key=lambda one: one.due)
    left = {one.sample.id: one.steps_left for one in urgent}
    while urgent:
        # those behind so many would find no row free
        first = {one.sample.id: one for one in urgent[: size.rows]}
        ranked = ((id, one.sample.spec.rows) for id, one in first.items())
        ids = choose_batch(ranked, images=size.images, rows=size.rows)
        times = min(left[id] for id in ids)
        yield times, [first[id] for id in ids]
        for id in ids:
            left[id] -= times
        urgent = [one for one in urgent if left[one.sample.id]]
