"""Replicas with a number of places, and images that wait for these at a dispatcher."""

from typing import Any

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.dispatcher import Dispatcher
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage


class CountedReplicas:
    """Replicas with a number of free places; the one with the most free places is the best."""

    def __init__(self, **free: int) -> None:
        self.free = free
        self.sent: list[tuple[str, str]] = []
        self.ranked: list[str] = []  # the images that replicas were ranked for

    def batched_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        return 0.1 * (segment.stop - sample.index)

    def are_full(self) -> bool:
        return not any(self.free.values())

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        self.ranked.append(sample.id)
        available = [id for id, places in self.free.items() if places > 0]
        return sorted(available, key=lambda id: (-self.free[id], id))

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> float:
        self.free[replica] -= 1
        self.sent.append((sample.id, replica))
        return self.batched_seconds(sample, segment) / 4


def _image(id: str, steps: int, caller: Caller, width: int) -> tuple[Sample[Any], StageSegment]:
    spec = ImageSpec(prompt="a", seed=1, width=width, height=1024, steps=steps, guidance=6.9)
    schedule = make_schedule(NoiseConfig(), spec.sampler, steps, None, 1.0)
    sample: Sample[Any] = new_sample(id, spec, schedule, Stage.BASE, caller=caller)
    return sample, StageSegment(Stage.BASE, steps, last=True)


def add(
    dispatcher: Dispatcher,
    id: str,
    steps: int = 30,
    arrived: float = 0.0,
    caller: Caller = NO_CALLER,
    width: int = 1024,
) -> None:
    """Let an image wait."""
    dispatcher.add(id, *_image(id, steps, caller, width), arrived)


def dispatch_all(dispatcher: Dispatcher) -> list[tuple[str, str]]:
    """Send images while there are places; return the key and the replica of each."""
    sent = []
    while (assignment := dispatcher.next_assignment()) is not None:
        dispatched = dispatcher.dispatch(assignment)
        assert dispatched is not None
        sent.append((dispatched.image.key, dispatched.replica))
    return sent
