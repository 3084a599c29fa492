"""`Backlog`: the images that one process has accepted and not finished, and what they will cost.

No replicas and no clock. Costs come from the replicas: each finished segment brings the newest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.demand import Demand
from serve_app.core.capacity.forecast import amortized_seconds, forecast, pending_work
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.suspicion import Suspicion

_TIMEOUT_FACTOR = 4.0  # times the predicted seconds, after which an image is given up
_TIMEOUT_GRACE_S = 60.0  # on top of that
_MODEL_LOAD_S = 120.0  # reading a model from a slow disk and trying it on its GPU


@dataclass(slots=True)
class ImageInFlight:
    """One accepted image: where it is on its way, and what has come of it."""

    sample: Sample[Any]  # as of its last snapshot
    segments: tuple[StageSegment, ...]
    profiles: tuple[tuple[Stage, str], ...] = ()  # of the segments that are done
    png: bytes | None = None
    suspicion: Suspicion = field(default_factory=Suspicion)
    replica: str = ""  # that has it, where known
    avoid: tuple[str, ...] = ()  # ids of replicas that fell silent with it

    @property
    def steps_left(self) -> int:
        """The steps from its last snapshot to its end."""
        return len(self.sample.schedule) - self.sample.index


class Backlog:
    """The accepted images, by id, and the costs of each stage."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.costs = dict.fromkeys(stages, CostTable())
        self._images: dict[str, ImageInFlight] = {}
        self._arrived_totals = dict.fromkeys(self.costs, 0.0)  # GPU seconds of all images ever

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: ImageInFlight) -> None:
        """Count an image as in flight."""
        self._images[image.sample.id] = image

    def remove(self, image: ImageInFlight) -> None:
        """Forget an image, however it ended."""
        del self._images[image.sample.id]

    @property
    def is_calibrated(self) -> bool:
        """Whether a step of every stage has been measured."""
        return all(costs.is_calibrated for costs in self.costs.values())

    def record_demand(self, image: ImageInFlight) -> None:
        """Add what an accepted image will cost each of its stages, in full batches."""
        for work in pending_work(image.sample, image.segments):
            costs = self.costs[work.segment.stage]
            if costs.is_calibrated:
                self._arrived_totals[work.segment.stage] += amortized_seconds([work], costs)

    def demands(self) -> dict[Stage, Demand]:
        """Return what the images need from each stage.

        Seconds are 0 while no step of the stage has been measured: then the number of images says
        that it is needed.
        """
        demands = {
            stage: Demand(arrived_total=total) for stage, total in self._arrived_totals.items()
        }
        for image in self._images.values():
            for position, work in enumerate(pending_work(image.sample, image.segments)):
                stage, costs = work.segment.stage, self.costs[work.segment.stage]
                seconds = amortized_seconds([work], costs) if costs.is_calibrated else 0.0
                demands[stage] += Demand(1, seconds, seconds if position else 0.0)
        return demands

    def owed_seconds(self) -> float:
        """Return the predicted GPU seconds that all images still need."""
        return self._seconds(self._images.values())

    def seconds_before(self, image: ImageInFlight) -> float:
        """Return the GPU seconds of the images that the engines run before this one.

        They are those with fewer steps left.
        """
        return self._seconds(
            other for other in self._images.values() if other.steps_left < image.steps_left
        )

    def seconds_of(self, image: ImageInFlight) -> float:
        """Return the GPU seconds that an image still needs when it runs alone."""
        return self._seconds([image])

    def default_timeout(self, *, several_models: bool, cold_stages: int) -> float:
        """Return the seconds that an image may take whose caller chose no timeout.

        They are four times the predicted seconds of the work in flight, a minute, and two minutes
        for each model that it may have to wait for: one per stage that may have no replica, and,
        with several models, one per model in use, its own too. Which models are in memory now makes
        no difference, since they may be evicted before the image's turn.
        """
        loads = cold_stages
        if several_models:
            images = self._images.values()
            loads += len(
                {
                    image.sample.spec.model
                    for image in images
                    if image.segments[0].stage is Stage.BASE
                }
            )
        return _TIMEOUT_FACTOR * self.owed_seconds() + _TIMEOUT_GRACE_S + _MODEL_LOAD_S * loads

    def _seconds(self, images: Iterable[ImageInFlight]) -> float:
        """Return the GPU seconds that these images still need, batched where they can be."""
        pending = [work for image in images for work in pending_work(image.sample, image.segments)]
        return sum(
            forecast([work for work in pending if work.segment.stage is stage], costs).seconds
            for stage, costs in self.costs.items()
        )
