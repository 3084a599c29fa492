"""The engine against the stock diffusers pipeline: the overhead of step-level batching.

Both run the same weights with the same threads, from prompt to pixels. Runs are paired and
alternate, so that a noisy machine disturbs both.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device

_GUIDANCE, _UNGUIDED = 6.9, 1.0

Generate = Callable[[list[ImageSpec]], object]
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Case:
    """Two ways to make the same images."""

    label: str
    images: int
    ours: Generate
    other: Generate
    guidance: float = _GUIDANCE


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of paired runs."""

    ours: list[float]
    other: list[float]

    @property
    def ratio(self) -> float:
        """Median of the other's seconds divided by ours: above 1, ours is faster."""
        return statistics.median(b / a for a, b in zip(self.ours, self.other, strict=True))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of that median."""
        ratios = [b / a for a, b in zip(self.ours, self.other, strict=True)]
        return bootstrap_interval(ratios, statistic=statistics.median)


def compare(*, runs: int, steps: int, threads: int) -> None:
    """Print stock's seconds divided by the engine's for the same images, case by case."""
    checkpoint = inspect(demo_folder(Stage.BASE), Stage.BASE)
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    stock = _stock(checkpoint)
    cases = [
        Case(label, images, _engine(checkpoint, device, room, strict=strict), stock)
        for label, strict, images, room in (
            *((f"fast, {n} of {n} images", False, n, n) for n in (1, 4, 8)),
            *((f"strict, {n} of {n} images", True, n, n) for n in (1, 4, 8)),
            *((f"strict, 1 of {n} images", True, 1, n) for n in (2, 4, 8)),
        )
    ]
    alone = _engine(checkpoint, device, 4, strict=True)
    cases.append(Case("strict, 1 of 4 images, unguided", 1, alone, stock, _UNGUIDED))
    table = Table(
        title=f"Engine against the stock pipeline: {steps} steps, {threads} CPU thread(s)",
        caption=f"{runs} paired runs. 1 of 4 images: alone, where four may step together. Above 1 "
        "the engine is faster. In brackets the 95 % bootstrap interval of the median",
    )
    for heading in ("", "stock ÷ engine", "interval", "engine s", "stock s"):
        table.add_column(heading, justify="right" if heading else "left")
    for case in cases:
        outcome = _measure(case, runs, steps, checkpoint)
        low, high = outcome.interval
        table.add_row(
            case.label,
            f"{outcome.ratio:.3f}",
            f"\\[{low:.3f}, {high:.3f}]",
            f"{statistics.median(outcome.ours):.3f}",
            f"{statistics.median(outcome.other):.3f}",
        )
    console.print(table)


def _measure(case: Case, runs: int, steps: int, checkpoint: Checkpoint) -> Outcome:
    """Return the seconds of `runs` paired runs, after one run that warms up both sides."""
    outcome = Outcome([], [])
    for run in track(range(-1, runs), case.label, console=console, transient=True):
        specs = [
            _spec(f"run {run} picture {i}", run + 2 + i, steps, case.guidance, checkpoint)
            for i in range(case.images)
        ]
        sides = [(case.ours, outcome.ours), (case.other, outcome.other)]
        for generate, seconds in sides if run % 2 else reversed(sides):
            start = time.perf_counter()
            generate(specs)
            if run >= 0:
                seconds.append(time.perf_counter() - start)
    return outcome


def _spec(prompt: str, seed: int, steps: int, guidance: float, checkpoint: Checkpoint) -> ImageSpec:
    side = checkpoint.native_size
    return ImageSpec(
        prompt=prompt, seed=seed, width=side, height=side, steps=steps, guidance=guidance
    )


def _stock(checkpoint: Checkpoint) -> Generate:
    """Return the stock pipeline, which makes all images in one call."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder, dtype=torch.float32, use_safetensors=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)

    def generate(specs: list[ImageSpec]) -> None:
        pipeline(
            [spec.prompt for spec in specs],
            num_inference_steps=specs[0].steps,
            guidance_scale=specs[0].guidance,
            generator=[torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
            width=specs[0].width,
            height=specs[0].height,
        )

    return generate


def _engine(checkpoint: Checkpoint, device: Device, images: int, *, strict: bool) -> Generate:
    """Return the engine without a server, run on this thread."""
    return LocalPipeline([checkpoint], device, images=images, strict=strict).generate
