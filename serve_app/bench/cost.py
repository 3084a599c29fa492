"""What images are predicted to take of a device against what they take, by the demo's engine.

An engine of base and refiner is given a mixture: sizes, steps, guidance, samplers, strengths and
hand-offs. Each image is predicted when it comes, leg by leg, from the company that is there. Once
all come together; and once one after another, where nobody can know who is to join.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import track

from serve_app.core.forecast import forecast, owed_by
from serve_app.core.sample import Leg, begin, handed_over, itinerary
from serve_app.core.schedule import make_schedule
from serve_app.core.scheduler import Owed
from serve_app.core.spec import ImageSpec, Sampler, Stage
from serve_app.demo.checkpoints import demo_folder
from serve_app.runtime.assembly import assemble
from serve_app.runtime.checkpoint import inspect
from serve_app.runtime.device import Device, open_device
from serve_app.runtime.engine import Engine
from serve_app.runtime.model import Packed
from serve_app.runtime.outcome import Event, Failed, Finished
from serve_app.runtime.shelf import Maker, Shelf

_IMAGES = 4  # that step together
_WARM = 3  # runs before any is counted
_SIZES = ((128, 128), (128, 128), (160, 96), (96, 160))
_SAMPLERS = (Sampler.EULER, Sampler.DPMPP_2M, Sampler.HEUN, Sampler.UNIPC)
_NEVER = 10**9  # steps between snapshots
_GAP = 12  # turns between two that come, on the mean: short batches and full ones

Clock = Callable[[], float]
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Runs of one kind."""

    runs: list[list[float]] = field(default_factory=list)  # the errors of each
    drains: list[float] = field(default_factory=list)


class Image:
    """One image on its way through the stages, and its seconds: predicted, then measured."""

    def __init__(self, engine: Engine, sample: Packed, legs: tuple[Leg, ...]) -> None:
        self._engine = engine
        self.sample = sample
        self.legs = legs  # the one that it is on, and those after it
        self.predicted = 0.0
        self.measured = 0.0
        self.foretold = 0.0
        self.failure: Exception | None = None

    @property
    def error(self) -> float:
        """How far off the prediction was, as a part of what was measured. Raises what the image
        ended with."""
        if self.failure:
            raise self.failure
        return abs(self.predicted / self.measured - 1)

    @property
    def later(self) -> list[Owed[Any]]:
        """What comes after the leg that it is on."""
        at_its_end = replace(self.sample, index=self.legs[0].stop, source=None)
        return owed_by(at_its_end, self.legs[1:])

    def walk(self) -> None:
        """The engine has its next leg."""
        self._engine.submit(handed_over(self.sample, self.legs[0].stage), self.legs[0], self)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.failure, self.legs = event.error, ()
        elif isinstance(event, Finished):
            self.measured += event.spent.seconds
            self.foretold += event.spent.foretold
            self.sample, self.legs = event.sample, self.legs[1:]
            if self.legs:
                self.walk()


class Queue:
    """An engine of the demo's two stages, driven by hand."""

    def __init__(self, clock: Clock, device: Device) -> None:
        found = [inspect(demo_folder(stage), stage) for stage in Stage]
        makers: dict[str, Maker] = {
            one.name if one.stage is Stage.BASE else "": partial(
                assemble, one, device, images=_IMAGES, strict=True
            )
            for one in found
        }
        shelf = Shelf(makers, room=len(makers), always=[""])
        self._noise, self._model = found[0].noise, shelf.default
        self._engine = Engine(shelf, snapshot_every=_NEVER, clock=clock)
        self._clock = clock
        self._images: list[Image] = []
        self._ids = count()

    def together(self, specs: Sequence[ImageSpec]) -> tuple[list[float], float]:
        """All come at once: the error of each, and how far off the owed seconds were from those
        that it took until nothing was left."""
        self._images = []
        owed = self._add(specs)
        began = self._clock()
        self._turn(_NEVER)
        took = self._clock() - began
        return [image.error for image in self._images], owed / took - 1

    def one_by_one(self, specs: Sequence[ImageSpec], draw: random.Random) -> list[float]:
        """One comes after another, at random: the error of each."""
        self._images = []
        for spec in specs:
            self._add([spec])
            self._turn(round(draw.expovariate(1 / _GAP)))
        self._turn(_NEVER)
        return [image.error for image in self._images]

    def _turn(self, most: int) -> None:
        while most > 0 and self._engine.turn():
            most -= 1

    def _add(self, specs: Sequence[ImageSpec]) -> float:
        """They have been predicted and come to the engine; the seconds that are owed now."""
        fresh = [self._image(spec) for spec in specs]
        known: list[Owed[Any]] = [*self._engine.owed()]
        known += (one for image in self._images if image.legs for one in image.later)
        known += (one for image in fresh for one in owed_by(image.sample, image.legs))
        told = forecast(known, self._engine.facts().prices)
        for image in fresh:
            image.predicted = told.shares[image.sample.id]
            image.walk()
        self._images += fresh
        return told.seconds

    def _image(self, spec: ImageSpec) -> Image:
        spec = replace(spec, model=self._model)
        schedule = make_schedule(self._noise, spec.sampler, spec.steps, spec.strength, spec.handoff)
        legs = itinerary(schedule, spec.handoff, refiner=True)
        source = None if spec.strength is None else bytes(3 * spec.width * spec.height)
        sample: Packed = begin(f"{next(self._ids)}", spec, schedule, legs[0].stage, source)
        return Image(self._engine, sample, legs)


def compare(*, runs: int, images: int, threads: int) -> None:
    """Prints the errors of both kinds of run, and of the owed seconds."""
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    queue = Queue(time.perf_counter, device)
    draw = random.Random(0)
    together, one_by_one = Outcome(), Outcome()
    for run in track(range(-_WARM, runs), "runs", console=console, transient=True):
        errors, off = queue.together(_mixture(images, draw))
        apart = queue.one_by_one(_mixture(images, draw), draw)
        if run >= 0:
            together.runs.append(errors)
            together.drains.append(abs(off))
            one_by_one.runs.append(apart)
    _print(together, one_by_one)


def _mixture(images: int, draw: random.Random) -> list[ImageSpec]:
    specs = []
    for number in range(images):
        width, height = draw.choice(_SIZES)
        specs.append(
            ImageSpec(
                prompt=f"a red star, {number}",
                seed=number,
                width=width,
                height=height,
                steps=draw.choice((4, 12, 20, 30)),
                guidance=draw.choice((1.0, 5.0, 7.0)),
                sampler=draw.choice(_SAMPLERS),
                strength=draw.choice((None, None, 0.3, 0.6)),
                handoff=draw.choice((1.0, 0.8)),
            )
        )
    return specs


def _print(together: Outcome, one_by_one: Outcome) -> None:
    for label, o in (("together", together), ("one by one", one_by_one)):
        pooled = sorted(e for run in o.runs for e in run)
        p90 = [statistics.quantiles(run, n=10)[-1] for run in o.runs]
        print(
            label,
            "median",
            statistics.median(pooled),
            "p90",
            statistics.quantiles(pooled, n=10)[-1],
            "runs' p90",
            min(p90),
            max(p90),
            "max",
            pooled[-1],
        )
    print("drain", statistics.median(together.drains), max(together.drains))
