"""`ImageTask`: one image to be made, the only argument that goes from a door to the engine."""

from dataclasses import dataclass

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.spec import ImageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image to be made for one caller.

    `timeout_s` counts from when the request arrived; None leaves the deadline to the service.
    `arrived` is a time of the process's event loop; None for a task that begins when it is run.
    """

    id: str
    spec: ImageSpec
    inputs: ImageInputs = NO_INPUTS
    timeout_s: float | None = None
    caller: Caller = NO_CALLER
    arrived: float | None = None

    def deadline(self, now: float) -> float | None:
        """Return the time by which the image must be ready, if its caller chose one."""
        arrived = now if self.arrived is None else self.arrived
        return None if self.timeout_s is None else arrived + self.timeout_s
