"""What a queue still takes: GPU seconds in all, and those of each image in it.

Knows no clock and runs nothing: it walks through what the scheduler would do, a stretch of equal
turns at a time. Nobody can know who comes later, so nobody else comes in a forecast.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import Prices, Turn, shares, turn_of
from serve_app.core.diffusion.sample import Leg, Sample, handed_over
from serve_app.core.scheduling.batching import choose_batch
from serve_app.core.scheduling.step_scheduler import BatchSize, Owed, Work

_BEGINNING = (Work.LOAD, Work.ATTACH, Work.CONDITION)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds of GPU work, from now until nothing is left of it."""

    seconds: float
    shares: dict[str, float]  # of each image, by id: they add up to it


def forecast(owed: Iterable[Owed[Any]], prices: Prices) -> Forecast:
    """What one device takes for all that is owed.

    Steps are as many as the batches that the scheduler would choose. A model or LoRA that somebody
    waits for is loaded once.
    """
    owed = list(owed)
    spent = {one.sample.id: 0.0 for one in owed}

    def charge(turn: Turn, times: int, of: Sequence[Owed[Any]]) -> None:
        rows = [one.sample.spec.rows for one in of]
        for one, share in zip(of, shares(rows, times * prices.seconds(turn)), strict=True):
            spent[one.sample.id] += share

    loads: dict[Turn, list[Owed[Any]]] = {}
    shapes: dict[Any, list[Owed[Any]]] = {}
    for one in owed:
        for turn in _to_load(one):
            loads.setdefault(turn, []).append(one)
        for work in _aside(one):
            charge(turn_of(work, one.sample), 1, [one])
        if one.steps:
            shapes.setdefault(one.sample.shape, []).append(one)
    for turn, waiting in loads.items():
        charge(turn, 1, waiting)
    for queue in shapes.values():
        size = prices.size(queue[0].sample.model)
        for times, batch in _stretches(queue, size):
            lanes = size.lanes or sum(one.sample.spec.rows for one in batch)
            charge(turn_of(Work.STEP, batch[0].sample, lanes=lanes), times, batch)
    return Forecast(sum(spent.values()), spent)


def price_in_company(owed: Iterable[Owed[Any]], prices: Prices) -> float:
    """GPU seconds that images cost a busy device: each beside as many like it as step together.
    Alone it would pay for all the lanes that it leaves empty."""
    seconds = 0.0
    for one in owed:
        sample = one.sample
        size = prices.size(sample.model)
        lanes = size.lanes or size.images * sample.spec.rows
        step = prices.seconds(turn_of(Work.STEP, sample, lanes=lanes))
        seconds += one.steps * step / size.images
        seconds += sum(prices.seconds(turn_of(work, sample)) for work in _aside(one))
    return seconds


def owed_by(sample: Sample[Any], legs: Iterable[Leg]) -> list[Owed[Any]]:
    """What is left of an image, leg by leg: of the one that it is on, from its first turn on."""
    ahead = []
    for leg in legs:
        if sample.index < leg.stop or leg.last:
            left = max(0, leg.stop - sample.index)
            here = handed_over(sample, leg.stage)
            ahead.append(Owed(here, leg, Work.CONDITION, due=left))
            sample = replace(sample, index=max(sample.index, leg.stop), source=None)
    return ahead


def _to_load(one: Owed[Any]) -> Iterator[Turn]:
    if one.work is Work.LOAD:
        yield turn_of(Work.LOAD, one.sample, load=one.sample.model)
    elif one.work is Work.ATTACH:
        for lora in one.sample.loras:
            yield turn_of(Work.ATTACH, one.sample, load=lora.name)


def _aside(one: Owed[Any]) -> Iterator[Work]:
    """The turns that a sample has to itself."""
    sample = one.sample
    if one.work in _BEGINNING and (one.steps or sample.latents is None):
        yield Work.CONDITION
    if sample.latents is None and sample.source is not None:
        yield Work.ENCODE
    if one.leg.last:
        yield Work.DECODE


def _stretches(
    queue: Iterable[Owed[Any]], size: BatchSize
) -> Iterator[tuple[int, list[Owed[Any]]]]:
    """Who steps together and for how many turns, until all have taken their steps."""
    urgent = sorted(queue, key=lambda one: one.due)
    left = {one.sample.id: one.steps for one in urgent}
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
