"""Predicted against measured time of images and queues, on the demo checkpoint.

An engine of base and refiner runs mixtures of sizes, steps, guidance, samplers, strengths and
hand-offs: all at once, and one after another, so that batches are full or not. There are two
clocks: wall time, which other processes disturb, and CPU time, which they hardly do. The latter is
like a GPU that serves nothing else.
"""

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.capacity.forecast import forecast, pending_work
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import PendingWork
from serve_app.runtime.build import model_loaders
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache

_MAX_BATCH_IMAGES = 4
_WARM_UP_RUNS = 2
_MEAN_GAP = 12  # engine turns between two arrivals, when they come one after another
_NO_LIMIT = 10**9
_SIZES = ((128, 128), (128, 128), (160, 96), (96, 160))
_STEPS = (4, 12, 20, 30)
_SAMPLERS = (Sampler.EULER, Sampler.DPMPP_2M, Sampler.HEUN, Sampler.UNIPC)
_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.thread_time}
_IN_ITS_BATCHES = "GPU time of an image, in the batches it ran in"
_TOGETHER = "predicted at arrival, all at once"
_APART = "predicted at arrival, one after another"
_DRAIN = "owed seconds, against the time to drain"
console = Console(highlight=False)

Errors = dict[str, list[list[float]]]  # by prediction: for each run, the errors of its images


class TimedImage:
    """One image on its way through the stages, with its predicted and measured seconds."""

    def __init__(
        self, engine: Engine, sample: HostSample, segments: tuple[StageSegment, ...]
    ) -> None:
        self._engine = engine
        self.sample = sample
        self.segments = segments  # the current one, and those after it
        self.predicted = 0.0  # seconds, at arrival
        self.gpu_times: list[GpuTime] = []  # of each finished segment
        self.failure: Exception | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """The relative errors of the predictions: at arrival, and for the batches it ran in.

        Raises the error that the image ended with, if it failed.
        """
        if self.failure:
            raise self.failure
        measured = sum(gpu_time.measured for gpu_time in self.gpu_times)
        predicted = sum(gpu_time.predicted for gpu_time in self.gpu_times)
        return self.predicted / measured - 1, predicted / measured - 1

    @property
    def work_after_segment(self) -> list[PendingWork[Any]]:
        """The work that follows the current segment."""
        at_its_end = replace(self.sample, index=self.segments[0].stop, inputs=NO_INPUTS)
        return pending_work(at_its_end, self.segments[1:])

    def submit(self) -> None:
        """Submit the next segment to the engine."""
        self._engine.submit(for_stage(self.sample, self.segments[0].stage), self.segments[0], self)

    def __call__(self, event: Event) -> None:
        """Listen to the engine: go on with the next segment, or stop at a failure."""
        if isinstance(event, Failed):
            self.failure, self.segments = event.error, ()
        elif isinstance(event, Finished):
            self.gpu_times.append(event.gpu_time)
            self.sample, self.segments = event.sample, self.segments[1:]
            if self.segments:
                self.submit()


class Queue:
    """An engine of the demo's two stages, run by hand, and the images that were submitted to it."""

    def __init__(self, clock: Callable[[], float], device: Device) -> None:
        checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
        loaders = model_loaders(checkpoints, device, images=_MAX_BATCH_IMAGES, strict=True)
        models = ModelCache(loaders, capacity=len(loaders), pinned=list(loaders)[1:])
        self._noise = checkpoints[0].noise_config
        self._model, self._refiner = (checkpoint.name for checkpoint in checkpoints)
        self._engine = Engine(models, snapshot_every=_NO_LIMIT, clock=clock)
        self._clock = clock
        self._images: list[TimedImage] = []
        self._ids = count()

    def run_together(self, specs: Sequence[ImageSpec]) -> tuple[list[TimedImage], float]:
        """Run images that arrive all at once.

        Returns the images, and the relative error of the owed seconds as a prediction of the time
        that they took.
        """
        self._images = []
        owed = self._submit(specs)
        start = self._clock()
        self._turn(_NO_LIMIT)
        return self._images, owed / (self._clock() - start) - 1

    def run_apart(self, specs: Sequence[ImageSpec], rng: random.Random) -> list[TimedImage]:
        """Run images that arrive one after another, at random, and return them."""
        self._images = []
        for spec in specs:
            self._submit([spec])
            self._turn(round(rng.expovariate(1 / _MEAN_GAP)))
        self._turn(_NO_LIMIT)
        return self._images

    def _turn(self, max_turns: int) -> None:
        while max_turns > 0 and self._engine.turn():
            max_turns -= 1

    def _submit(self, specs: Sequence[ImageSpec]) -> float:
        """Predict the images, submit them, and return the seconds that are owed now."""
        arriving = [self._image(spec) for spec in specs]
        work: list[PendingWork[Any]] = [*self._engine.pending()]
        for image in self._images:
            work += image.work_after_segment if image.segments else []
        for image in arriving:
            work += pending_work(image.sample, image.segments)
        prediction = forecast(work, self._engine.stats().costs)
        for image in arriving:
            image.predicted = prediction.shares[image.sample.id]
            image.submit()
        self._images += arriving
        return prediction.seconds

    def _image(self, spec: ImageSpec) -> TimedImage:
        spec = replace(spec, model=self._model, refiner=self._refiner)
        schedule = make_schedule(self._noise, spec.sampler, spec.steps, spec.strength, spec.handoff)
        segments = stage_segments(schedule, spec.handoff, refiner=True)
        init_image = None if spec.strength is None else bytes(3 * spec.width * spec.height)
        sample: HostSample = new_sample(
            f"{next(self._ids)}", spec, schedule, segments[0].stage, ImageInputs(init_image)
        )
        return TimedImage(self._engine, sample, segments)


def compare(*, runs: int, images: int, threads: int) -> None:
    """Print the errors of the predictions, by both clocks."""
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    queues = {name: Queue(clock, device) for name, clock in _CLOCKS.items()}
    errors: dict[str, Errors] = {name: defaultdict(list) for name in queues}
    for run in track(range(-_WARM_UP_RUNS, runs), "runs", console=console, transient=True):
        for name, queue in queues.items():
            run_errors = measure(queue, images, random.Random(run + _WARM_UP_RUNS))
            if run >= 0:
                for prediction, values in run_errors.items():
                    errors[name][prediction].append(values)
    _print(errors, runs, images, threads)


def measure(
    queue: Queue, images: int, rng: random.Random, steps: Sequence[int] = _STEPS
) -> dict[str, list[float]]:
    """Return the relative errors of one mixture that arrives at once, and one that does not."""
    together, drain_error = queue.run_together(_mixture(images, rng, steps))
    apart = queue.run_apart(_mixture(images, rng, steps), rng)
    return {
        _IN_ITS_BATCHES: [image.errors[1] for image in (*together, *apart)],
        _TOGETHER: [image.errors[0] for image in together],
        _APART: [image.errors[0] for image in apart],
        _DRAIN: [drain_error],
    }


def _mixture(images: int, rng: random.Random, steps: Sequence[int]) -> list[ImageSpec]:
    specs = []
    for number in range(images):
        width, height = rng.choice(_SIZES)
        specs.append(
            ImageSpec(
                prompt=f"a red star, {number}",
                seed=number,
                width=width,
                height=height,
                steps=rng.choice(steps),
                guidance=rng.choice((1.0, 5.0, 7.0)),
                sampler=rng.choice(_SAMPLERS),
                strength=rng.choice((None, None, 0.3, 0.6)),
                handoff=rng.choice((1.0, 0.8)),
            )
        )
    return specs


def _print(errors: dict[str, Errors], runs: int, images: int, threads: int) -> None:
    table = Table(
        title=f"Predicted against measured: {runs} runs of two mixtures of {images} images, "
        f"{threads} CPU thread(s)",
        caption="Relative errors without their sign, in brackets the min and max of the runs; and "
        "the mean with its sign and its 95 % bootstrap interval. A prediction at arrival "
        "can't know images that arrive later, so it assumes smaller batches",
    )
    for heading in ("", "clock", "median error", "90th percentile", "mean, signed"):
        table.add_column(heading, justify="right" if heading else "left")
    for prediction in (_IN_ITS_BATCHES, _TOGETHER, _APART, _DRAIN):
        for clock, by_prediction in errors.items():
            table.add_row(prediction, clock, *_cells(by_prediction[prediction]))
    console.print(table)


def _cells(errors_by_run: list[list[float]]) -> list[str]:
    errors = [error for run in errors_by_run for error in run]
    groups = [number for number, run in enumerate(errors_by_run) for _ in run]
    low, high = bootstrap_interval(errors, groups)
    cells = []
    for share in (0.5, 0.9):
        by_run = [quantile(run, share) for run in errors_by_run]
        cells.append(f"{quantile(errors, share):.1%} \\[{min(by_run):.1%}, {max(by_run):.1%}]")
    return [*cells, f"{statistics.fmean(errors):+.1%} \\[{low:+.1%}, {high:+.1%}]"]


def quantile(errors: Sequence[float], share: float) -> float:
    """Return the smallest absolute error that this share of all errors does not exceed."""
    sizes = sorted(map(abs, errors))
    return sizes[math.ceil(share * len(sizes)) - 1]
