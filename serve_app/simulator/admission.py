"""The service's admission in a simulation, where every image is a job of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import AdmissionLimits, StageWork
from serve_app.core.capacity.admission_control import AdmissionControl, StageCapacity, Verdict
from serve_app.core.capacity.owed_work import OwedImage
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.replica import SimSample


class SimAdmission:
    """The images that a simulated cluster has admitted; each is a job of its own."""

    def __init__(self, limits: AdmissionLimits, size: BatchSize) -> None:
        self._control = AdmissionControl(tuple(Stage), limits)
        self._size = size

    def judge(
        self,
        caller: Caller,
        works: Sequence[StageWork],
        due: float,
        timeout_s: float | None,
        replicas: Mapping[Stage, int],
        now: float,
    ) -> Verdict:
        """Return whether an image is admitted, as the service would decide."""
        deadline = None if timeout_s is None else now + timeout_s
        return self._control.judge(caller, works, due, deadline, self._capacities(replicas), now)

    def seconds_from_turn(
        self, works: Sequence[StageWork], replicas: Mapping[Stage, int], now: float
    ) -> float:
        """Return what an image takes when it no longer waits, beside what was admitted."""
        return self._control.seconds_from_turn(works, self._capacities(replicas), now)

    def begin(self, id: str, image: OwedImage) -> None:
        """Count an image as admitted."""
        self._control.begin_job(image.caller)
        self.update(id, image)

    def update(self, id: str, image: OwedImage) -> None:
        """Take note of what an image still needs."""
        self._control.owed.put(id, image)

    def end(self, id: str, caller: Caller) -> None:
        """Take note that an image has ended."""
        self._control.end_job(caller)
        self._control.owed.remove(id)

    def _capacities(self, replicas: Mapping[Stage, int]) -> dict[Stage, StageCapacity]:
        return {stage: StageCapacity(count, self._size.images) for stage, count in replicas.items()}


def stage_works(
    sample: SimSample,
    segments: Sequence[StageSegment],
    shares: Sequence[float],
    speed: GpuSpeed,
    size: BatchSize,
) -> list[StageWork]:
    """Return the work of an image at each stage; `shares` are its GPU-seconds by segment."""
    works = []
    for segment, share in zip(segments, shares, strict=True):
        isolated, batched = (
            speed.image_seconds(sample, (segment,), size, images) for images in (1, size.images)
        )
        works.append(StageWork(segment.stage, 1, share, isolated, batched))
        sample = replace(sample, index=max(sample.index, segment.stop))
    return works
