"""`Backlog`: the images that one process has accepted and not finished, and what they will cost.

No replicas and no clock. Costs come from the replicas: each finished segment brings the newest.
What an image costs is computed when something happens to it, so that sums are there when they are
asked for, however many images wait.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.admission import StageWork
from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.demand import Demand
from serve_app.core.capacity.forecast import (
    amortized_seconds,
    image_seconds,
    load_seconds,
    pending_work,
)
from serve_app.core.capacity.owed_work import OwedImage, OwedWork
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.outlook import TimeLeft, time_left
from serve_app.core.service.pace import Pace
from serve_app.core.service.suspicion import Suspicion

_TIMEOUT_FACTOR = 4.0  # times the predicted seconds, after which an image is given up
_TIMEOUT_GRACE_S = 60.0  # on top of that
_MODEL_LOAD_S = 120.0  # reading a model from a slow disk and trying it on its GPU


@dataclass(slots=True)
class ImageInFlight:
    """One accepted image: where it is on its way, and what has come of it."""

    sample: Sample[Any]  # as of its last snapshot
    segments: tuple[StageSegment, ...]
    due: float = 0.0  # seconds: when it would be done, had it stepped in full batches at once
    png: bytes | None = None
    gpu_seconds: float = 0.0  # of its finished segments
    suspicion: Suspicion = field(default_factory=Suspicion)
    replica: str = ""  # that has it, where known
    avoid: tuple[str, ...] = ()  # ids of replicas that fell silent with it
    index: int | None = (
        None  # of the step that it was about to take when last heard of; None: waits
    )
    pace: Pace = field(default_factory=Pace)
    watched: bool = False  # by somebody who wants previews


class Backlog:
    """The accepted images, by id, and the costs of each stage.

    `pools` names for each stage the one by which the replicas that run it are known: the first of
    the two stages where one replica runs both.
    """

    def __init__(self, pools: Mapping[Stage, Stage], owed: OwedWork | None = None) -> None:
        self.owed = OwedWork(set(pools.values())) if owed is None else owed
        self._pools = pools
        self._costs = dict.fromkeys(pools, CostTable())
        self._images: dict[str, ImageInFlight] = {}
        self._shares: dict[str, tuple[tuple[Stage, float], ...]] = {}  # by image: stages to come
        self._arrived_totals = dict.fromkeys(pools, 0.0)  # GPU seconds of all images ever
        self._outdated = 0  # times that costs have changed since all shares were computed

    def __len__(self) -> int:
        return len(self._images)

    @property
    def model_keys(self) -> frozenset[ModelKey]:
        """The models of the stages at which the accepted images are."""
        return frozenset(image.sample.model_key for image in self._images.values())

    def get(self, id: str) -> ImageInFlight | None:
        """Return an accepted image, if there is one of this id."""
        return self._images.get(id)

    @property
    def costs(self) -> Mapping[Stage, CostTable]:
        """The newest costs of each stage."""
        return self._costs

    def set_costs(self, stage: Stage, costs: CostTable) -> None:
        """Replace the costs of a stage.

        What waiting images will cost is computed anew once in a while, so that this takes no longer
        the more images wait.
        """
        first = costs.is_calibrated and not self._costs[stage].is_calibrated
        self._costs[stage] = costs
        self._outdated += 1
        if first or self._outdated > len(self._images):
            self._outdated = 0
            for image in self._images.values():
                self.update(image)

    def add(self, image: ImageInFlight) -> None:
        """Count an image as in flight, and what it will cost as arrived."""
        self._images[image.sample.id] = image
        self.update(image)
        for stage, seconds in self._shares[image.sample.id]:
            self._arrived_totals[stage] += seconds

    def update(self, image: ImageInFlight, index: int | None = None) -> None:
        """Compute what an image still costs: from its last snapshot, or from the step `index`.

        Nothing happens to an image that is not in flight.
        """
        if image.sample.id not in self._images:
            return
        sample = image.sample if index is None else replace(image.sample, index=index)
        shares = tuple(
            (work.segment.stage, amortized_seconds([work], costs) if costs.is_calibrated else 0.0)
            for work in pending_work(sample, image.segments)
            for costs in (self._costs[work.segment.stage],)
        )
        self._shares[image.sample.id] = shares
        seconds: dict[Stage, float] = {}
        for stage, share in shares:
            pool = self._pools[stage]
            seconds[pool] = seconds.get(pool, 0.0) + share
        self.owed.put(image.sample.id, OwedImage(image.sample.caller, image.due, seconds))

    def note_step(self, image: ImageInFlight, index: int, now: float) -> None:
        """Take note that an image is about to take a step; `now` is a time in seconds."""
        self.update(image, index)
        image.index = index
        image.pace = image.pace.after(now, -self.time_left(image).steps)

    def time_left(self, image: ImageInFlight) -> TimeLeft:
        """Return what an image takes from the step on that was heard of last."""
        index = image.sample.index if image.index is None else image.index
        return time_left(replace(image.sample, index=index), image.segments, self._costs)

    def has_costs(self, image: ImageInFlight) -> bool:
        """Return whether a step of every stage that an image has yet to pass was measured."""
        works = pending_work(image.sample, image.segments)
        return all(self._costs[work.segment.stage].is_calibrated for work in works)

    def position(self, image: ImageInFlight) -> int:
        """Return the place of an image among those that have not begun; 0 if it has."""
        if image.index is not None:
            return 0
        waiting = (other for other in self._images.values() if other.index is None)
        return 1 + sum(other.due < image.due for other in waiting)

    def remove(self, image: ImageInFlight) -> None:
        """Forget an image, however it ended."""
        del self._images[image.sample.id], self._shares[image.sample.id]
        self.owed.remove(image.sample.id)

    @property
    def is_calibrated(self) -> bool:
        """Whether a step of every stage has been measured."""
        return all(costs.is_calibrated for costs in self._costs.values())

    def demands(self) -> dict[Stage, Demand]:
        """Return what the images need from each stage.

        Seconds are 0 while no step of the stage has been measured: then the number of images says
        that it is needed.
        """
        images, owed, upstream = (dict.fromkeys(self._arrived_totals, 0.0) for _ in range(3))
        for shares in self._shares.values():
            for position, (stage, seconds) in enumerate(shares):
                images[stage] += 1
                owed[stage] += seconds
                upstream[stage] += seconds if position else 0.0
        return {
            stage: Demand(images[stage], owed[stage], upstream[stage], total)
            for stage, total in self._arrived_totals.items()
        }

    def works(self, images: Sequence[ImageInFlight]) -> tuple[StageWork, ...]:
        """Return the work of a job's images at each stage; none before a step was measured.

        The images need not be in flight.
        """
        works: dict[Stage, StageWork] = {}
        for image in images:
            isolated: dict[Stage, float] = {}
            batched: dict[Stage, float] = {}
            amortized: dict[Stage, float] = {}
            for work in pending_work(image.sample, image.segments):
                pool, costs = self._pools[work.segment.stage], self._costs[work.segment.stage]
                if not costs.is_calibrated:
                    return ()
                isolated[pool] = isolated.get(pool, 0.0) + image_seconds([work], costs, images=1)
                batched[pool] = batched.get(pool, 0.0) + image_seconds([work], costs)
                amortized[pool] = amortized.get(pool, 0.0) + amortized_seconds([work], costs)
            for pool, seconds in isolated.items():
                known = works.get(pool) or StageWork(pool, 0, 0.0, 0.0, 0.0)
                works[pool] = StageWork(
                    pool,
                    known.images + 1,
                    known.amortized + amortized[pool],
                    max(known.isolated, seconds),
                    max(known.batched, batched[pool]),
                )
        return tuple(works.values())

    def batched_seconds(self, image: ImageInFlight) -> float:
        """Return the seconds that an image still takes in full batches; 0 if that is unknown."""
        return self._seconds(image) if self.is_calibrated else 0.0

    def load_seconds(self, newcomers: Sequence[ImageInFlight]) -> float:
        """Return the seconds of loading the base models that only images in flight wait for."""
        own = {image.sample.spec.model for image in newcomers}
        others = {
            image.sample.spec.model: image.sample
            for image in self._images.values()
            if image.sample.stage is Stage.BASE and image.sample.spec.model not in own
        }
        costs = self._costs[Stage.BASE]
        return sum(load_seconds(other, costs) for other in others.values())

    def default_timeout(
        self, image: ImageInFlight, *, several_models: bool, cold_stages: int
    ) -> float:
        """Return the seconds that an image may take whose caller chose no timeout.

        They are four times the predicted seconds of the image and of the work in flight, a minute,
        and two minutes for each model that it may have to wait for: one per stage that may have no
        replica, and, with several models, one per model in use, its own too. Which models are in
        memory now makes no difference, since they may be evicted before the image's turn.
        """
        loads = cold_stages
        if several_models:
            images = [image, *self._images.values()]
            loads += len(
                {
                    image.sample.spec.model
                    for image in images
                    if image.segments[0].stage is Stage.BASE
                }
            )
        if self.is_calibrated:
            predicted = sum(map(self.owed.total, self.owed.stages)) + self._seconds(image)
        else:  # on an assumed machine, a slow one
            predicted = sum(map(self._seconds, self._images.values()))
        return _TIMEOUT_FACTOR * predicted + _TIMEOUT_GRACE_S + _MODEL_LOAD_S * loads

    def _seconds(self, image: ImageInFlight) -> float:
        """Return the seconds that an image takes in full batches, assumed where unknown."""
        return sum(
            image_seconds([work], self._costs[work.segment.stage])
            for work in pending_work(image.sample, image.segments)
        )
