"""`KnownReplica`: what one process knows of one replica. Its `Fleet` is the only writer.

Decisions ask every replica of a stage for its places and its work. So these are computed when they
are first asked for, and kept until the images change.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Self

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, turn_kind
from serve_app.core.capacity.replica_load import KeyLoad, ReplicaLoad
from serve_app.core.capacity.replica_report import RemainingWork, ReplicaReport, remaining_work
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.scheduling.work import WorkKind

_DEFAULT_LOAD_SECONDS = 20.0  # to load a model, before any load was measured
_MAX_MISSED_REPORTS = 2  # that may have been on their way when an image came or left


@dataclass(frozen=True, slots=True)
class InFlight:
    """An image on a replica, or one that left it a short while ago."""

    remaining: RemainingWork | None  # None: it has left, even if a late report lists it
    sent_here: bool  # by this process
    predicted: float = 0.0  # GPU seconds, of an image that was sent from here
    missed_reports: int = 0  # that lack it since it was sent, or that came since it left


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image that needs a replica, as the replicas of one profile see it."""

    caller: Caller
    model: ModelKey
    batch_key: str  # encoded
    steps: int
    batch_images: int  # that step together
    max_images: int  # that Serve lets a replica have
    alone_seconds: float  # that it adds where no other image has its batch key
    load_seconds: float  # of its model, where that is not in memory
    costs: CostTable

    @classmethod
    def of(
        cls,
        sample: Sample[Any],
        segment: StageSegment,
        batch_key: str,
        costs: CostTable,
        max_images: int,
    ) -> Self:
        """Return the image with what it costs; `batch_key` is the usual one of the sample."""
        images = costs.batch_size(sample.model_key).images
        work = remaining_work(sample, segment, costs)
        load = turn_kind(WorkKind.LOAD, sample, load=sample.model_key)
        return cls(
            caller=sample.caller,
            model=sample.model_key,
            batch_key=batch_key,
            steps=work.steps,
            batch_images=images,
            max_images=max_images,
            alone_seconds=work.load(costs).added_seconds(work.steps, images),
            load_seconds=costs.seconds(load) or _DEFAULT_LOAD_SECONDS,
            costs=costs,
        )


@dataclass(slots=True)
class KnownReplica:
    """A replica, with the images that are on it or left it a short while ago."""

    report: ReplicaReport | None = None
    report_time: float = -inf  # seconds
    is_suspect: bool = False  # it fell silent with an image, and has sent no new report since
    images: dict[str, InFlight] = field(default_factory=dict)  # by `key_of`
    # By the number of images that step together; empty when the images have changed.
    _loads: dict[int, ReplicaLoad] = field(default_factory=dict)

    def set_images(self, images: dict[str, InFlight]) -> None:
        """Replace the images."""
        self.images, self._loads = images, {}

    def is_full(self, costs: CostTable, max_images: int) -> bool:
        """Return whether it has no place for any caller, whatever the image."""
        load = self._load(costs.max_batch_images, costs)
        return load.is_full or load.images >= max_images

    def seconds_with(self, image: NewImage) -> tuple[float, float] | None:
        """Return the seconds until it has done its work, and those that the image adds.

        None: it has no place for the image.
        """
        load = self._load(image.batch_images, image.costs)
        if load.images >= image.max_images or not load.has_place(image.caller, image.batch_key):
            return None
        added = load.added_seconds(image.batch_key, image.steps, image.alone_seconds)
        if self.report and image.model not in self.report.models:
            added += image.load_seconds
        return load.seconds, added

    def _load(self, batch_images: int, costs: CostTable) -> ReplicaLoad:
        load = self._loads.get(batch_images)
        if load is None:
            remaining = [image.remaining for image in self.images.values() if image.remaining]
            callers = Counter(work.caller for work in remaining)
            load = ReplicaLoad(batch_images, _loads_by_key(remaining, costs), callers)
            self._loads[batch_images] = load
        return load


def _loads_by_key(remaining: Iterable[RemainingWork], costs: CostTable) -> dict[str, KeyLoad]:
    """Return the loads of images by batch key; the first with steps says what its key's take."""
    by_key: dict[str, list[RemainingWork]] = {}
    for work in remaining:
        by_key.setdefault(work.batch_key, []).append(work)
    return {
        key: next((work for work in works if work.steps), works[0])
        .load(costs)
        .add(*(work.steps for work in works))
        for key, works in by_key.items()
    }


def after_report(
    images: Mapping[str, InFlight], reported: Mapping[str, RemainingWork]
) -> dict[str, InFlight]:
    """Return the images of a replica after a report.

    An image that was sent from here stays for a few reports that lack it, and one that left stays
    away for a few reports, even if they have it.
    """
    updated = {key: InFlight(work, sent_here=False) for key, work in reported.items()}
    for key, image in images.items():
        if not image.sent_here:
            continue
        if image.remaining and key in reported:
            updated[key] = InFlight(reported[key], sent_here=True, predicted=image.predicted)
        elif image.missed_reports < _MAX_MISSED_REPORTS:
            updated[key] = replace(image, missed_reports=image.missed_reports + 1)
    return updated
