"""`KnownReplica`: what one process knows of one replica. Its `Fleet` is the only writer.

Decisions ask every replica of a stage for its places and its work. So these are computed when they
are first asked for, and kept until the images change.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Self

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, turn_kind
from serve_app.core.capacity.replica_report import RemainingWork, ReplicaReport, remaining_work
from serve_app.core.capacity.routing import KeyLoad, ReplicaLoad, has_place, max_places
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


class _Contents:
    """What follows from a replica's images and report, if `batch_images` step together."""

    def __init__(
        self,
        remaining: Sequence[RemainingWork],
        models: Collection[ModelKey] | None,
        batch_images: int,
        costs: CostTable,
    ) -> None:
        """Compute it; `models` are those in memory, None if they are not known."""
        self.total = len(remaining)
        self._callers = Counter(work.caller for work in remaining)
        self._names = frozenset(caller.name for caller in self._callers)
        self._loads = dict[str, KeyLoad]()
        for work in remaining:
            known = self._loads.get(work.batch_key)
            if known is None or not known.stepping:
                known = work.load(costs)
            self._loads[work.batch_key] = known.add(work.steps)
        load = ReplicaLoad(batch_images, self._loads)
        self._seconds, self._keys = load.seconds, load.keys
        self._models, self._batch_images = models, batch_images
        self._places = max_places(batch_images, self._keys)
        self.places_with_another_key = max_places(batch_images, self._keys + 1)
        # Answers of `has_place` to callers with images here: by caller, whether any image here has
        # the new one's key, and whether a batch of that key has room.
        self._answers = dict[tuple[Caller, bool, bool], bool]()

    def seconds_with(self, image: NewImage) -> tuple[float, float] | None:
        """Return the seconds until all is done, and those that the image adds; None: no place."""
        load = self._loads.get(image.batch_key)
        same_key = load.stepping if load else 0
        places = self._places if same_key else self.places_with_another_key
        if self.total >= places or self.total >= image.max_images:
            return None
        if image.caller.name in self._names and not self._has_place(image.caller, same_key):
            return None
        added = image.alone_seconds
        if load:
            added = load.added_seconds(image.steps, self._batch_images)
        if self._models is not None and image.model not in self._models:
            added += image.load_seconds
        return self._seconds, added

    def _has_place(self, caller: Caller, same_key: int) -> bool:
        question = caller, same_key > 0, same_key < self._batch_images
        answer = self._answers.get(question)
        if answer is None:
            keys = self._keys + (not same_key)
            answer = has_place(self._batch_images, self._callers, caller, same_key, keys)
            self._answers[question] = answer
        return answer


@dataclass(slots=True)
class KnownReplica:
    """A replica, with the images that are on it or left it a short while ago."""

    report: ReplicaReport | None = None
    report_time: float = -inf  # seconds
    is_suspect: bool = False  # it fell silent with an image, and has sent no new report since
    images: dict[str, InFlight] = field(default_factory=dict)  # by `key_of`
    # By the number of images that step together; empty when the images have changed.
    _contents: dict[int, _Contents] = field(default_factory=dict)

    def set_images(self, images: dict[str, InFlight]) -> None:
        """Replace the images."""
        self.images, self._contents = images, {}

    def is_full(self, costs: CostTable, max_images: int) -> bool:
        """Return whether it has no place for any caller, whatever the image."""
        contents = self._known(costs.max_batch_images, costs)
        return contents.total >= min(max_images, contents.places_with_another_key)

    def seconds_with(self, image: NewImage) -> tuple[float, float] | None:
        """Return the seconds until it has done its work, and those that the image adds.

        None: it has no place for the image.
        """
        size = image.batch_images
        contents = self._contents.get(size) or self._known(size, image.costs)
        return contents.seconds_with(image)

    def _known(self, batch_images: int, costs: CostTable) -> _Contents:
        contents = self._contents.get(batch_images)
        if contents is None:
            remaining = [image.remaining for image in self.images.values() if image.remaining]
            models = self.report.models if self.report else None
            contents = _Contents(remaining, models, batch_images, costs)
            self._contents[batch_images] = contents
        return contents


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
