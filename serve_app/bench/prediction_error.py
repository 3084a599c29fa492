"""What images are predicted to take of a device against what they then take, on the demo.

An engine of base and refiner is given mixtures of sizes, steps, guidance, samplers, strengths and
hand-offs: all at once, and one after another, so that batches are full or not. Time is the wall's,
which others on this machine disturb, and the CPU's, which they hardly can: what a GPU of one's own
would be.
"""

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.capacity.forecast import forecast, pending_work
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import PendingWork
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.stage_model import HostSample

_IMAGES = 4  # that step together
_WARM = 2  # runs before any is counted
_GAP = 12  # turns between two that come one after another, on the mean
_NEVER = 10**9
_SIZES = ((128, 128), (128, 128), (160, 96), (96, 160))
_SAMPLERS = (Sampler.EULER, Sampler.DPMPP_2M, Sampler.HEUN, Sampler.UNIPC)
_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.thread_time}
_FORETOLD = "GPU time of an image, in the company it had"
_ARRIVAL = "as predicted when it came: all at once"
_APART = "as predicted when it came: one after another"
_OWED = "owed seconds, against the time to drain"
console = Console(highlight=False)

Errors = dict[str, list[list[float]]]  # by what was predicted: of each run, each one's error


class Image:
    """One image on its way through the stages, and its seconds: predicted, then measured."""

    def __init__(self, engine: Engine, sample: HostSample, legs: tuple[StageSegment, ...]) -> None:
        self._engine = engine
        self.sample = sample
        self.legs = legs  # the one that it is on, and those after it
        self.predicted = 0.0
        self.spent: list[GpuTime] = []  # of each leg
        self.failure: Exception | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """How far off what was predicted when it came, and what was foretold for its company, as
        parts of what was measured. Raises what the image ended with."""
        if self.failure:
            raise self.failure
        measured = sum(spent.measured for spent in self.spent)
        foretold = sum(spent.predicted for spent in self.spent)
        return self.predicted / measured - 1, foretold / measured - 1

    @property
    def later(self) -> list[PendingWork[Any]]:
        """What comes after the leg that it is on."""
        at_its_end = replace(self.sample, index=self.legs[0].stop, inputs=NO_INPUTS)
        return pending_work(at_its_end, self.legs[1:])

    def walk(self) -> None:
        """The engine has its next leg."""
        self._engine.submit(for_stage(self.sample, self.legs[0].stage), self.legs[0], self)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.failure, self.legs = event.error, ()
        elif isinstance(event, Finished):
            self.spent.append(event.gpu_time)
            self.sample, self.legs = event.sample, self.legs[1:]
            if self.legs:
                self.walk()


class Queue:
    """An engine of the demo's two stages, driven by hand."""

    def __init__(self, clock: Callable[[], float], device: Device) -> None:
        found = [inspect(demo_folder(stage), stage) for stage in Stage]
        makers: dict[ModelKey, Loader] = {
            ModelKey(one.stage, one.name): partial(
                build_stage_model, one, device, images=_IMAGES, strict=True
            )
            for one in found
        }
        shelf = ModelCache(makers, capacity=len(makers), pinned=list(makers)[1:])
        self._noise = found[0].noise_config
        self._model, self._refiner = (checkpoint.name for checkpoint in found)
        self._engine = Engine(shelf, snapshot_every=_NEVER, clock=clock)
        self._clock = clock
        self._images: list[Image] = []
        self._ids = count()

    def together(self, specs: Sequence[ImageSpec]) -> tuple[list[Image], float]:
        """The images, which all came at once and have ended; and how far off the owed seconds were
        from those that it took."""
        self._images = []
        owed = self._add(specs)
        began = self._clock()
        self._turn(_NEVER)
        return self._images, owed / (self._clock() - began) - 1

    def one_by_one(self, specs: Sequence[ImageSpec], draw: random.Random) -> list[Image]:
        """The images, which came one after another, at random, and have ended."""
        self._images = []
        for spec in specs:
            self._add([spec])
            self._turn(round(draw.expovariate(1 / _GAP)))
        self._turn(_NEVER)
        return self._images

    def _turn(self, most: int) -> None:
        while most > 0 and self._engine.turn():
            most -= 1

    def _add(self, specs: Sequence[ImageSpec]) -> float:
        """They have been predicted and come to the engine; the seconds that are owed now."""
        fresh = [self._image(spec) for spec in specs]
        known: list[PendingWork[Any]] = [*self._engine.pending()]
        known += (one for image in self._images if image.legs for one in image.later)
        known += (one for image in fresh for one in pending_work(image.sample, image.legs))
        told = forecast(known, self._engine.stats().costs)
        for image in fresh:
            image.predicted = told.shares[image.sample.id]
            image.walk()
        self._images += fresh
        return told.seconds

    def _image(self, spec: ImageSpec) -> Image:
        spec = replace(spec, model=self._model, refiner=self._refiner)
        schedule = make_schedule(self._noise, spec.sampler, spec.steps, spec.strength, spec.handoff)
        legs = stage_segments(schedule, spec.handoff, refiner=True)
        source = None if spec.strength is None else bytes(3 * spec.width * spec.height)
        sample: HostSample = new_sample(
            f"{next(self._ids)}", spec, schedule, legs[0].stage, ImageInputs(source)
        )
        return Image(self._engine, sample, legs)


def compare(*, runs: int, images: int, threads: int) -> None:
    """Prints how far off predictions were, by both clocks."""
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    queues = {name: Queue(clock, device) for name, clock in _CLOCKS.items()}
    errors: dict[str, Errors] = {name: defaultdict(list) for name in queues}
    for run in track(range(-_WARM, runs), "runs", console=console, transient=True):
        for name, queue in queues.items():
            found = _run(queue, images, random.Random(run + _WARM))
            for what, off in found.items():
                errors[name][what] += [off] * (run >= 0)
    _print(errors, runs, images, threads)


def _run(queue: Queue, images: int, draw: random.Random) -> dict[str, list[float]]:
    """The errors of a mixture that came at once, and of one that came bit by bit."""
    crowd, off = queue.together(_mixture(images, draw))
    apart = queue.one_by_one(_mixture(images, draw), draw)
    return {
        _FORETOLD: [image.errors[1] for image in (*crowd, *apart)],
        _ARRIVAL: [image.errors[0] for image in crowd],
        _APART: [image.errors[0] for image in apart],
        _OWED: [off],
    }


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


def _print(errors: dict[str, Errors], runs: int, images: int, threads: int) -> None:
    table = Table(
        title=f"Predicted against measured, {runs} runs of twice {images} images, {threads} CPU "
        "thread(s)",
        caption="Errors without their sign, in brackets the least and the most of any run; and the "
        "mean with its sign, with its 95 % bootstrap interval. What comes when all are at once is "
        "known, what comes later is not: then the prediction counts on less company",
    )
    for heading in ("", "clock", "median error", "90th percentile", "mean, signed"):
        table.add_column(heading, justify="right" if heading else "left")
    for what in (_FORETOLD, _ARRIVAL, _APART, _OWED):
        for name, found in errors.items():
            table.add_row(what, name, *_figures(found[what]))
    console.print(table)


def _figures(found: list[list[float]]) -> list[str]:
    flat = [off for run in found for off in run]
    groups = [number for number, run in enumerate(found) for _ in run]
    low, high = bootstrap_interval(flat, groups)
    figures = []
    for part in (0.5, 0.9):
        of_runs = [_quantile(run, part) for run in found]
        least, most = min(of_runs), max(of_runs)
        figures.append(f"{_quantile(flat, part):.1%} \\[{least:.1%}, {most:.1%}]")
    return [*figures, f"{statistics.fmean(flat):+.1%} \\[{low:+.1%}, {high:+.1%}]"]


def _quantile(off: Sequence[float], part: float) -> float:
    """The least error, without its sign, that so large a part of them does not exceed."""
    sizes = sorted(map(abs, off))
    return sizes[math.ceil(part * len(sizes)) - 1]
