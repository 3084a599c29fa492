"""`ImageTask`: one image to be made, the only argument that goes from a door to the engine."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.service.suspicion import Suspicion

UNSUSPECTED = Suspicion()


@dataclass(frozen=True, slots=True)
class ImageSnapshot:
    """An image on its way, from which any process can make it; with its PNG once it is done."""

    sample: Sample[Any]  # between two steps, in the form of the wire
    png: bytes | None = None
    suspicion: Suspicion = UNSUSPECTED  # of whoever worked at it

    @property
    def steps_done(self) -> tuple[bool, int]:
        """How far it is: of two snapshots of an image the greater one saves more work."""
        return self.png is not None, self.sample.index


def gravest(snapshots: Iterable[ImageSnapshot]) -> Suspicion:
    """Return the suspicion of most deaths, of all that is known of an image."""
    found = (snapshot.suspicion for snapshot in snapshots)
    return max(found, key=lambda s: (s.deaths, s.suspected, s.is_suspect), default=UNSUSPECTED)


async def _is_ours() -> None:
    """Return: nobody can take over the job of this task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image to be made for one caller.

    `timeout_s` counts from when the request arrived; None leaves the deadline to the service.
    `arrived` is a time of the process's event loop; None for a task that begins when it is run.
    `has_drawn_seed`: the caller left the seed to the service.
    `resume` is where it goes on. `is_retaken`: a process that worked at it is gone, and the
    replicas may have kept a snapshot. `confirm` is called when its lease has expired, and raises if
    its job is another process's now.
    """

    id: str
    spec: ImageSpec
    inputs: ImageInputs = NO_INPUTS
    timeout_s: float | None = None
    caller: Caller = NO_CALLER
    arrived: float | None = None
    has_drawn_seed: bool = False
    resume: ImageSnapshot | None = None
    is_retaken: bool = False
    confirm: Callable[[], Awaitable[None]] = _is_ours

    def deadline(self, now: float) -> float | None:
        """Return the time by which the image must be ready, if its caller chose one."""
        arrived = now if self.arrived is None else self.arrived
        return None if self.timeout_s is None else arrived + self.timeout_s
