"""What previews are worth on the demo: how like the finished picture they are, and what they cost.

Likeness is the correlation of a preview's pixels with the picture's mean colour under each of them.
The cost is the time of an image that somebody watches by that of the same image unwatched, in
turns, on the engine's own thread; the JPEG is made on another one, and is timed apart.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.diffusion.sample import new_sample, plan_segments
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.evaluation import questions
from serve_app.runtime.build import model_loaders
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Finished, PreviewMade
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.png import encode_preview
from serve_app.runtime.subscriptions import PREVIEW_GAP

STEPS = 40
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the steps
_SNAPSHOT_EVERY = 5  # steps, the service's default
_SERVED_SIDE = 128  # pixels of a preview of a picture of a megapixel
console = Console(highlight=False)


def measure(*, images: int, runs: int, threads: int) -> None:
    """Print how like the pictures of so many prompts their previews are, and what they cost."""
    checkpoint = inspect(demo_folder(Stage.BASE), Stage.BASE)
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    loaders = model_loaders([checkpoint], device, images=1, strict=True)
    models = ModelCache(loaders)
    specs = [
        replace(question.spec(question.prompt()), steps=STEPS, model=checkpoint.name)
        for question in questions(images)
    ]

    def draw(
        spec: ImageSpec, *, watched: bool, clock: Callable[[], float]
    ) -> tuple[float, list[Event]]:
        """Return the seconds of an image, and its events."""
        engine = Engine(models, snapshot_every=_SNAPSHOT_EVERY, clock=clock)
        schedule, (segment,) = plan_segments(checkpoint.noise_config, spec, refiner=False)
        sample: Any = new_sample("one", spec, schedule, Stage.BASE)
        events: list[Event] = []
        engine.submit(sample, replace(segment, watched=watched), events.append)
        started = time.perf_counter()
        while engine.turn():
            pass
        return time.perf_counter() - started, events

    draw(specs[0], watched=True, clock=time.monotonic)  # loads the model
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    for spec in track(specs, "likeness", console=console, transient=True):
        ticks = count(0.0)  # so that every step is far enough from the last one for a preview
        _, events = draw(spec, watched=True, clock=ticks.__next__)
        for share, likeness in _likenesses(events).items():
            found[share].append(likeness)
    ratios = []
    for _ in track(range(runs), "cost", console=console, transient=True):
        plain, watched = (
            draw(specs[0], watched=watched, clock=time.monotonic)[0] for watched in (False, True)
        )
        ratios.append(watched / plain)
    console.print(_table(found))
    low, high = bootstrap_interval(ratios, statistic=median)
    console.print(
        f"a watched image takes {median(ratios):.3f} [{low:.3f}, {high:.3f}] of an unwatched one's "
        f"time: {runs} pairs, {STEPS} steps, a preview every {PREVIEW_GAP:g} s"
    )
    console.print(f"a preview of {_SERVED_SIDE} x {_SERVED_SIDE} as JPEG: {_jpeg_ms():.2f} ms")


def _likenesses(events: Sequence[Event]) -> dict[float, float]:
    """Return the correlation with the picture of the preview at each share of the steps."""
    (picture,) = [event.image for event in events if isinstance(event, Finished)]
    previews = {event.index: event.image for event in events if isinstance(event, PreviewMade)}
    assert picture is not None
    last = max(previews)
    return {share: likeness(previews[min(round(share * STEPS), last)], picture) for share in SHARES}


def likeness(preview: RgbImage, picture: RgbImage) -> float:
    """Return the correlation of a preview with the mean colours of a picture; 0 if one is flat."""
    height, width, _ = preview.shape
    scale = picture.shape[0] // height
    means = picture.reshape(height, scale, width, scale, 3).mean((1, 3))
    if not preview.std() or not means.std():
        return 0.0
    return float(np.corrcoef(preview.ravel(), means.ravel())[0, 1])


def _table(found: dict[float, list[float]]) -> Table:
    number = len(found[SHARES[0]])
    table = Table(
        title=f"Correlation of previews with the picture, {number} prompts, {STEPS} steps",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("after", "mean", "median", "least"):
        table.add_column(heading, justify="right")
    for share, values in found.items():
        table.add_row(
            f"{share:.0%}",
            f"[bold]{fmean(values):.3f}[/]",
            f"{median(values):.3f}",
            f"{min(values):.3f}",
        )
    return table


def _jpeg_ms() -> float:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
    picture = np.kron(coarse, np.ones((_SERVED_SIDE // 16, _SERVED_SIDE // 16, 1), np.uint8))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        encode_preview(picture)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)
