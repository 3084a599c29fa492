"""`aura bench cpu`: measure, print, write JSON, plot."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

from serve_app.bench.cpu.alone import NotMeasured, run_alone
from serve_app.bench.cpu.image import ImageSeconds, ImageTimes, Setup, measure_engine, measure_stock
from serve_app.bench.cpu.plot import plot_cpu
from serve_app.bench.cpu.unet_step import StepTimes, Variant, named_variants
from serve_app.bench.cpu.unet_step import measure as measure_step
from serve_app.bench.random_checkpoint import write_random_checkpoint
from serve_app.bench.run_record import RunRecord
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.runtime.checkpoints.checkpoint import inspect, num_parameters
from serve_app.runtime.memory.device import DTYPES

ROWS = (1, 2)
PRECISIONS = ("bf16", "fp32")  # of the engine beside stock
PACKAGES = ("aura-serve", "torch", "diffusers", "transformers", "openvino")
_IMAGES = 2  # that have room in the engine, as by default on a CPU
_ROOM = 2 * 2**30  # bytes for activations and libraries
console = Console(highlight=False)

Steps = Mapping[Variant, StepTimes | NotMeasured]
Images = Mapping[str, ImageTimes | NotMeasured]  # by precision


def compare(
    *,
    checkpoint: Path | None,
    side: int,
    runs: int,
    pairs: int,
    steps: int,
    threads: int,
    output: Path,
    only: Sequence[str] = (),
) -> None:
    """Print the ways to run the UNet and the engine beside stock; write the JSON and the plot.

    Without a `checkpoint` it is SDXL's architecture with random weights. With 0 `runs` or 0 `pairs`
    that half is left out; `only` has words of the ways' labels, see `named_variants`.
    """
    variants = named_variants(only) if runs else ()
    record = RunRecord.now(PACKAGES)
    with ExitStack() as stack:
        if checkpoint is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="aura-bench-")))
            with console.status("writing SDXL's networks with random weights"):
                checkpoint = write_random_checkpoint(folder / "sdxl-random")
        found_steps = _measure_steps(checkpoint, variants, side, runs, threads)
        precisions = PRECISIONS if pairs else ()
        found_images = _measure_images(checkpoint, precisions, side, steps, pairs, threads)
    console.print(record.summary, soft_wrap=True)
    if found_steps:
        console.print(_step_table(found_steps, side, runs, threads))
    if found_images:
        console.print(_image_table(found_images, side, steps, pairs))
    numbers = output.with_suffix(".json")
    record.write(numbers, _to_json(found_steps, found_images, side, steps, threads))
    console.print(f"JSON: {numbers}")
    measured = {v: times for v, times in found_steps.items() if isinstance(times, StepTimes)}
    if not measured:
        return
    try:
        plot_cpu({v.label: times for v, times in measured.items()}, side, record, output)
    except OperatorError as error:
        console.print(f"[yellow]{error}[/]")
    else:
        console.print(f"Plot: {output}")


def _measure_steps(
    checkpoint: Path, variants: Sequence[Variant], side: int, runs: int, threads: int
) -> Steps:
    parameters = num_parameters(inspect(checkpoint, Stage.BASE))["unet"]
    found: dict[Variant, StepTimes | NotMeasured] = {}
    for variant in variants:
        weights = parameters * DTYPES[variant.precision].itemsize
        arguments = (variant, checkpoint, side, ROWS, runs, threads)
        with console.status(f"a step by {variant.label}"):
            try:
                found[variant] = run_alone(
                    measure_step, *arguments, needed=variant.copies * weights + _ROOM
                )
            except NotMeasured as error:
                found[variant] = error
    return found


def _measure_images(
    checkpoint: Path, precisions: Sequence[str], side: int, steps: int, pairs: int, threads: int
) -> Images:
    parameters = sum(num_parameters(inspect(checkpoint, Stage.BASE)).values())
    found: dict[str, ImageTimes | NotMeasured] = {}
    for precision in precisions:
        needed = parameters * DTYPES[precision].itemsize + _ROOM
        with (
            TemporaryDirectory() as proofs,
            console.status(f"the engine beside stock in {precision}"),
        ):
            file = Path(proofs) / "proofs.json"
            setup = Setup(checkpoint, precision, side, steps, threads, _IMAGES, file)
            try:
                found[precision] = _measure_pairs(setup, pairs, needed)
            except NotMeasured as error:
                found[precision] = error
    return found


def _measure_pairs(setup: Setup, pairs: int, needed: float) -> ImageTimes:
    """Return the times of images that the engine and stock make in turns."""
    engine: list[ImageSeconds] = []
    stock: list[ImageSeconds] = []
    sides = [(measure_engine, engine), (measure_stock, stock)]
    for pair in range(pairs):
        for measure, times in sides if pair % 2 else reversed(sides):
            times.append(run_alone(measure, setup, pair, needed=needed))
    return ImageTimes(
        setup.precision,
        [times.image for times in engine],
        [times.image for times in stock],
        engine[0].first,
    )


def _step_table(found: Steps, side: int, runs: int, threads: int) -> Table:
    """Return seconds by rows, each divided by those of the first way, and how results differ."""
    table = Table(
        title=f"One step of the UNet at {side} x {side}, {threads} CPU threads",
        caption=f"Median of {runs} steps, each way in a process of its own. ÷: by the first way's "
        "seconds. Error: RMS of the difference from the first way's result by its own RMS",
        title_justify="left",
        title_style="bold",
    )
    for heading in (
        "",
        *(h for rows in ROWS for h in (f"{rows} rows, s", "÷")),
        "error",
        "ready s",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    first = next((times for times in found.values() if isinstance(times, StepTimes)), None)
    for variant, times in found.items():
        if isinstance(times, NotMeasured) or first is None:
            table.add_row(variant.label, f"not measured: {times}")
            continue
        cells = []
        for rows in ROWS:
            seconds = median(times.seconds[rows])
            cells += [f"{seconds:.3f}", f"{seconds / median(first.seconds[rows]):.2f}"]
        cells += [f"{_error(times, first):.1e}", f"{times.ready_seconds:.0f}"]
        table.add_row(variant.label, *cells)
    return table


def _image_table(found: Images, side: int, steps: int, pairs: int) -> Table:
    table = Table(
        title=f"A lone guided image, {side} x {side}, {steps} steps: strict engine and stock",
        caption=f"Medians of {pairs} pairs that alternate, from prompt to pixels, where {_IMAGES} "
        "images have room. First: the engine's first image of one step, with strict mode's proof, "
        "which is remembered on disk",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("", "engine s", "stock s", "engine ÷ stock", "first s"):
        table.add_column(heading, justify="right" if heading else "left")
    for precision, times in found.items():
        if isinstance(times, NotMeasured):
            table.add_row(precision, f"not measured: {times}")
            continue
        table.add_row(
            precision,
            f"{median(times.engine):.2f}",
            f"{median(times.stock):.2f}",
            f"[bold]{times.ratio:.3f}[/]",
            f"{times.first_seconds:.1f}",
        )
    return table


def _error(times: StepTimes, first: StepTimes) -> float:
    difference = times.denoised - first.denoised
    return float(np.sqrt((difference**2).mean() / (first.denoised**2).mean()))


def _to_json(
    steps: Steps, images: Images, side: int, image_steps: int, threads: int
) -> dict[str, object]:
    first = next((times for times in steps.values() if isinstance(times, StepTimes)), None)
    rows: list[dict[str, object]] = []
    for variant, times in steps.items():
        row: dict[str, object] = {"variant": asdict(variant)}
        if isinstance(times, NotMeasured) or first is None:
            row["notMeasured"] = str(times)
        else:
            row |= {"readySeconds": times.ready_seconds, "error": _error(times, first)}
            row["seconds"] = {str(rows): list(found) for rows, found in times.seconds.items()}
        rows.append(row)
    return {
        "side": side,
        "threads": threads,
        "steps": rows,
        "imageSteps": image_steps,
        "images": {
            precision: {"notMeasured": str(times)}
            if isinstance(times, NotMeasured)
            else asdict(times) | {"ratio": times.ratio}
            for precision, times in images.items()
        },
    }
