"""`ImageTask`: one image to be made, the only argument that goes from a door to the engine."""

from dataclasses import dataclass

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.spec import ImageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image to be made for one caller.

    `timeout_s` counts from when the task is accepted; None leaves the deadline to the service.
    """

    id: str
    spec: ImageSpec
    inputs: ImageInputs = NO_INPUTS
    timeout_s: float | None = None
    caller: Caller = NO_CALLER
