"""What work costs: TFLOP of a step, an image or a queue, and the seconds a learned rate makes.

Knows no clock: seconds are measured elsewhere and passed in.
The weights are fitted to the matmul and convolution counts of SDXL's published block structure:
convolutions grow with the area, attention with its square (12 % of base and 16 % of the refiner
at 1024 x 1024). A checkpoint of another size only changes the rate.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from serve_app.core.sample import Leg
from serve_app.core.spec import ImageSpec, Stage

_MEGAPIXEL = 1024 * 1024
_UNET_TFLOP = {Stage.BASE: (5.95, 0.81), Stage.REFINER: (6.12, 1.17)}  # per area, per area squared
_DECODE_TFLOP = 10.47  # per area
_LEARNING = 0.2  # weight of the newest observation
UNKNOWN_RATE = 1.0  # TFLOP/s: what a slow machine does, until the first turn is measured


def megapixel_steps(spec: ImageSpec) -> float:
    """What an image counts against its caller's allowance: steps times megapixels, each of Heun's
    twice."""
    steps = spec.steps if spec.strength is None else max(1.0, spec.steps * spec.strength)
    return steps * spec.sampler.calls * spec.width * spec.height / 1e6


def step_tflop(stage: Stage, width: int, height: int, rows: int) -> float:
    """Work of one UNet call with `rows` rows at a picture size in pixels."""
    area = width * height / _MEGAPIXEL
    linear, square = _UNET_TFLOP[stage]
    return rows * (linear * area + square * area**2)


def decode_tflop(width: int, height: int) -> float:
    """Work of turning latents into a picture; an encode is counted the same."""
    return _DECODE_TFLOP * width * height / _MEGAPIXEL


def leg_tflop(spec: ImageSpec, leg: Leg, index: int) -> float:
    """Work still owed on a leg to a sample that stands at `index`, its own rows only."""
    steps = max(0, leg.stop - index)
    work = steps * step_tflop(leg.stage, spec.width, spec.height, spec.rows)
    return work + (decode_tflop(spec.width, spec.height) if leg.last else 0.0)


def work_ahead(spec: ImageSpec, legs: Iterable[Leg], index: int) -> list[tuple[Stage, float]]:
    """Work still owed to an image that stands at `index`, leg by leg."""
    ahead = []
    for leg in legs:
        ahead.append((leg.stage, leg_tflop(spec, leg, index)))
        index = max(index, leg.stop)
    return ahead


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast work is done, in TFLOP a second: a mean that leans to what was seen last."""

    tflops: float = UNKNOWN_RATE
    known: bool = False

    def seconds(self, tflop: float) -> float:
        """Predicted seconds for some work."""
        return tflop / self.tflops

    def seen(self, tflop: float, seconds: float) -> "Rate":
        """The rate after one more observation; an instant or empty one teaches nothing."""
        if tflop <= 0 or seconds <= 0:
            return self
        newest = tflop / seconds
        if not self.known:
            return Rate(newest, known=True)
        return replace(self, tflops=self.tflops + _LEARNING * (newest - self.tflops))
