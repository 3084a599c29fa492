"""`StepQueue`: the samples that wait for their next step, by batch key and caller."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.diffusion.keys import BatchKey
from serve_app.core.diffusion.sample import Sample

Rank = tuple[int, int, str]  # due turn, number of its arrival, id: the lower, the more urgent


@dataclass(slots=True)
class _Queue:
    """The samples of one caller with one batch key; never empty."""

    caller: Caller
    ranks: list[Rank] = field(default_factory=list)  # the most urgent first


class StepQueue:
    """The samples that step, with those of each batch key and caller in order of urgency."""

    def __init__(self) -> None:
        self._queues: dict[BatchKey, dict[str, _Queue]] = {}  # by the caller's name

    def __len__(self) -> int:
        """Return the number of batch keys."""
        return len(self._queues)

    def add(self, sample: Sample[Any], rank: Rank) -> None:
        """Let a sample wait."""
        queues = self._queues.setdefault(sample.batch_key, {})
        queue = queues.setdefault(sample.caller.name, _Queue(sample.caller))
        insort(queue.ranks, rank)

    def remove(self, sample: Sample[Any], rank: Rank) -> None:
        """Let a sample wait no longer."""
        queues = self._queues[sample.batch_key]
        ranks = queues[sample.caller.name].ranks
        del ranks[bisect_left(ranks, rank)]
        if not ranks:
            del queues[sample.caller.name]
        if not queues:
            del self._queues[sample.batch_key]

    def count(self, sample: Sample[Any]) -> int:
        """Return how many samples wait that have this one's batch key and caller."""
        return len(self._queues[sample.batch_key][sample.caller.name].ranks)

    def first(self, time: Callable[[Caller], float]) -> tuple[BatchKey, Caller]:
        """Return the caller with the least virtual time, and its most urgent sample's batch key.

        Among equals, the caller whose sample is more urgent is first.
        """
        *_, key, caller = min(
            (time(queue.caller), queue.ranks[0], position, key, queue.caller)
            for position, (key, queues) in enumerate(self._queues.items())
            for queue in queues.values()
        )
        return key, caller

    def in_fair_order(
        self,
        key: BatchKey,
        owner: Caller,
        time: Callable[[Caller], float],
        seconds: Callable[[str], float],
    ) -> Iterator[str]:
        """Yield the ids of a batch key as places of one batch go to them.

        The owner's most urgent sample is first. Each further place goes to the caller with the
        least virtual time, as if those before had been charged already with `seconds` of each id.
        """
        queues = self._queues[key]
        places = [
            (
                float("-inf") if queue.caller == owner else time(queue.caller),
                queue.ranks[0],
                0,
                name,
            )
            for name, queue in queues.items()
        ]
        heapq.heapify(places)
        while places:
            at, (*_, id), number, name = places[0]
            queue = queues[name]
            yield id
            at = max(at, time(queue.caller)) + seconds(id) / queue.caller.weight
            if number + 1 < len(queue.ranks):
                heapq.heapreplace(places, (at, queue.ranks[number + 1], number + 1, name))
            else:
                heapq.heappop(places)
