"""`aura bench gpu`: measure, print, write JSON, plot."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.bench.gpu.ceiling import matmul_tflops
from serve_app.bench.gpu.model import (
    EngineTime,
    Rung,
    Swap,
    engine_times,
    memory_ladder,
    swap,
    vae_seconds,
)
from serve_app.bench.gpu.plot import plot_gpu
from serve_app.bench.gpu.unet import (
    EAGER,
    KEPT,
    OPTIONS,
    StepTime,
    flops_per_row,
    step_times,
)
from serve_app.bench.random_checkpoint import write_random_checkpoint
from serve_app.bench.run_record import RunRecord
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.core.scheduling.memory_plan import MemorySaving
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.memory.device import DTYPES, Device, open_device
from serve_app.runtime.networks.loading import load

console = Console(highlight=False)


@dataclass(slots=True)
class Results:
    """What was measured so far."""

    ceilings: dict[str, float] = field(default_factory=dict)  # TFLOP/s by precision
    steps: list[StepTime] = field(default_factory=list)
    images: list[EngineTime] = field(default_factory=list)
    vae: dict[str, float] = field(default_factory=dict)  # seconds by precision
    rungs: list[Rung] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # parts for which there was no time


@dataclass(frozen=True, slots=True)
class Scale:
    """How large and how long."""

    checkpoint: Path | None  # None: SDXL's size with random weights
    sides: tuple[int, ...]  # of images; the first is that of all but the eager steps
    rows: tuple[int, ...] = (1, 2, 4, 8)
    steps: int = 30  # per image
    images: int = 4  # that step together
    runs: int = 5
    matmul_side: int = 8192
    cpu_threads: int = 8
    options: tuple[str, ...] = OPTIONS


def measure(scale: Scale, *, device: str, minutes: float, output: Path) -> Results:
    """Measure part by part until the time is over; print tables, write the JSON and the plot.

    No part begins after `minutes`, and one that is going on ends with its present measurement.
    """
    record, results = RunRecord.now(), Results()
    until = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        folder = scale.checkpoint
        if folder is None:
            temporary = Path(stack.enter_context(TemporaryDirectory(prefix="aura-bench-")))
            with console.status("writing SDXL's networks with random weights"):
                folder = write_random_checkpoint(temporary / "sdxl-random")
        for label, part in _parts(inspect(folder, Stage.BASE), scale, device, results):
            is_complete = time.monotonic() < until
            if is_complete:
                with console.status(label):
                    is_complete = _run_until(until, part())
            if not is_complete:
                results.skipped.append(label)
            record.write(output.with_suffix(".json"), asdict(results))
    console.print(record.summary, soft_wrap=True)
    for table in _tables(results):
        console.print(table)
    if results.skipped:
        console.print(f"Not measured to the end, for lack of time: {', '.join(results.skipped)}")
    console.print(f"JSON: {output.with_suffix('.json')}")
    if not results.steps:
        return results
    try:
        plot_gpu(results.steps, results.ceilings, record, output)
    except OperatorError as error:
        console.print(f"[yellow]{error}[/]")
    else:
        console.print(f"Plot: {output}")
    return results


def _run_until(until: float, part: Iterable[None]) -> bool:
    """Run a part measurement by measurement; return whether it ended before the time did."""
    return all(time.monotonic() < until for _ in part)


def _parts(
    checkpoint: Checkpoint, scale: Scale, name: str, results: Results
) -> Iterator[tuple[str, Callable[[], Iterator[None]]]]:
    """Yield each part's name and what runs it, those first that decide most."""

    def opened(precision: str) -> Device:
        return open_device(name, precision=precision, xformers=False, cpu_threads=scale.cpu_threads)

    def ceilings() -> Iterator[None]:
        for precision in ("bf16", "fp16"):
            device = opened(precision)
            results.ceilings[precision] = matmul_tflops(
                device, DTYPES[precision], scale.matmul_side
            )
            yield

    def steps(precision: str, options: tuple[str, ...], sides: tuple[int, ...]) -> Iterator[None]:
        device = opened(precision)
        device.empty_cache()
        chosen = tuple(option for option in options if option in scale.options)
        for found in step_times(
            checkpoint, device, precision, sides, scale.rows, chosen, scale.runs
        ):
            results.steps.append(found)
            yield
        device.empty_cache()

    def engine() -> Iterator[None]:
        flops = flops_per_row(checkpoint, scale.sides[0])
        for found in engine_times(
            checkpoint, opened("bf16"), scale.sides[0], scale.steps, scale.images, flops, 2
        ):
            results.images.append(found)
            yield

    def vae() -> Iterator[None]:
        for precision in ("bf16", "fp32"):
            device = opened(precision)
            seconds = vae_seconds(load(checkpoint, device), device, scale.sides[0], scale.runs)
            results.vae[precision] = seconds
            yield

    def ladder() -> Iterator[None]:
        savings = [MemorySaving.VAE_TILES, MemorySaving.TEXT_ON_CPU]
        if name == "cuda":  # elsewhere a copy of the UNet on the host saves nothing
            savings.append(MemorySaving.UNET_ON_CPU)
        for found in memory_ladder(checkpoint, opened("bf16"), savings, scale.images):
            results.rungs.append(found)
            yield

    def swaps() -> Iterator[None]:
        results.swaps.append(swap(checkpoint, opened("bf16"), scale.runs))
        yield

    few = scale.sides[:1]
    yield "ceilings", ceilings
    yield "bf16, eager", partial(steps, "bf16", (EAGER, KEPT), few)
    yield "images through the engine", engine
    yield "bf16, all options", partial(steps, "bf16", OPTIONS[1:], few)
    yield "VAE", vae
    yield "memory savings", ladder
    yield "loading and swap", swaps
    yield "bf16, other sizes", partial(steps, "bf16", (KEPT,), scale.sides[1:])
    yield "fp16", partial(steps, "fp16", (KEPT,), few)


def _tables(results: Results) -> Iterator[Table]:
    yield _table(
        "One step of the UNet; the share is that of a matrix product in this run",
        ("precision", "option", "side", "rows", "ms", "TFLOP/s", "share", "first s"),
        [_step_row(found, results.ceilings) for found in results.steps],
    )
    yield _table(
        "Images through the engine, from prompt to pixels, the first as it is alone",
        ("mode", "images", "s", "images/s", "UNet TFLOP/s", "same bytes"),
        [
            (
                found.mode,
                found.images,
                f"{found.seconds:.3f}",
                f"{found.images / found.seconds:.3f}",
                f"{found.tflops:.1f}",
                "yes" if found.equals_alone else "no",
            )
            for found in results.images
        ],
    )
    yield _table(
        "Decode of one image",
        ("VAE", "ms"),
        [(precision, f"{seconds * 1000:.1f}") for precision, seconds in results.vae.items()],
    )
    yield _table(
        "Memory of each rung, every kind of work on the largest image",
        ("savings", "images", "fits", "peak GiB"),
        [
            (
                ", ".join(rung.savings) or "none",
                rung.images,
                "yes" if rung.fits else "no",
                f"{rung.peak / 2**30:.2f}" if rung.peak else "not measured here",
            )
            for rung in results.rungs
        ],
    )
    yield _table(
        "Loading with all checks, and the swap to pinned memory and back",
        ("load s", "offload s", "restore s", "peak GiB"),
        [
            (
                f"{found.load_seconds:.1f}",
                f"{found.offload_seconds:.3f}",
                f"{found.restore_seconds:.3f}",
                f"{found.peak / 2**30:.2f}" if found.peak else "not measured here",
            )
            for found in results.swaps
        ],
    )


def _step_row(found: StepTime, ceilings: dict[str, float]) -> tuple[object, ...]:
    key = (found.precision, found.option, found.side, found.rows)
    if found.seconds is None:
        return (*key, "out of memory", "", "", "")
    ceiling = ceilings.get(found.precision)
    return (
        *key,
        f"{found.seconds * 1000:.2f}",
        f"{found.tflops:.1f}" if found.tflops >= 1 else f"{found.tflops:.3f}",
        f"{found.tflops / ceiling:.0%}" if ceiling else "",
        f"{found.warm_up_seconds:.1f}",
    )


def _table(title: str, headings: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    return table
