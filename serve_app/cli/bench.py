"""The commands of `aura bench`; each imports its work when it runs."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.command_line import Command, CommandGroup, PngFile, print_help_alone

_SIZE = re.compile(r"(\d+)x(\d+)")


def image_sizes(sizes: list[str]) -> list[str]:
    """Return the sizes. Raises `typer.BadParameter` if one is not a size that the demo can make."""
    for size in sizes:
        found = _SIZE.fullmatch(size)
        if not found or not all(64 <= int(s) <= 512 and int(s) % 8 == 0 for s in found.groups()):
            raise typer.BadParameter(f"must be two multiples of 8 from 64 to 512, got {size}")
    return sizes


def parse_sizes(sizes: list[str]) -> tuple[tuple[int, int], ...]:
    """Return width and height of each size, as `image_sizes` lets them pass."""
    pairs = (size.split("x") for size in sizes)
    return tuple((int(width), int(height)) for width, height in pairs)


bench = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    callback=print_help_alone,
    help="Measure on this machine what the documentation claims.",
)


@bench.command("engine", cls=Command)
def bench_engine(
    runs: Annotated[int, typer.Option(min=3, help="Paired runs per row.")] = 9,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Denoising steps per image.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for either side.")] = 1,
) -> None:
    """Compare the engine with the stock diffusers pipeline, on the demo checkpoint."""
    from serve_app.bench.engine_vs_stock import compare

    compare(runs=runs, steps=steps, threads=threads)


@bench.command("serve", cls=Command)
def bench_serve(
    sizes: Annotated[
        list[str],
        typer.Option(
            "--size",
            callback=image_sizes,
            default_factory=lambda: ["128x128"],
            show_default=False,
            help="A size; repeat. Default: 128x128.",
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each in another order.")] = 3,
    requests: Annotated[
        int, typer.Option(min=4, help="Requests for each system, load and round.")
    ] = 28,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the closed loop.")] = 16,
    batch: Annotated[
        int, typer.Option(min=1, max=16, help="Images that may run together, of every system.")
    ] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every system.")] = 1,
    deadline: Annotated[
        float, typer.Option(min=0.5, help="Seconds until a request is given up under overload.")
    ] = 4,
    loras: Annotated[int, typer.Option(min=0, max=4, help="LoRAs, each worn as often.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of a system's name; repeat. Default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: does it run?")] = False,
    output: PngFile = Path("serve.png"),
) -> None:
    """Compare the whole service over HTTP with what one would use instead, on the demo."""
    from serve_app.bench.serve.command import measure
    from serve_app.bench.serve.results import Plan
    from serve_app.bench.serve.workload import Workload

    names = [f"lora{number}" for number in range(loras)]
    workload = Workload(sizes=parse_sizes(sizes), loras=(None, *names))
    plan = Plan(rounds, requests, clients, deadline, batch, threads, workload)
    measure(plan, only or (), output, quick=quick)


@bench.command("cpu", cls=Command)
def bench_cpu(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Base checkpoint. Default: SDXL's size with random weights, 6.9 GB"),
    ] = None,
    side: Annotated[int, typer.Option(min=64, max=2048, help="Pixels per side.")] = 512,
    runs: Annotated[int, typer.Option(min=0, help="Steps per row of the first table.")] = 3,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of images per row of the second.")] = 3,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Denoising steps per image.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of a way's name; repeat. Default: all.")
    ] = None,
    output: PngFile = Path("cpu.png"),
) -> None:
    """Compare ways to run the UNet on this CPU at full size, and the engine with stock."""
    from serve_app.bench.cpu.command import compare

    compare(
        checkpoint=checkpoint,
        side=side,
        runs=runs,
        pairs=pairs,
        steps=steps,
        threads=threads,
        output=output,
        only=only or (),
    )


@bench.command("gpu", cls=Command)
def bench_gpu(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Base checkpoint. Default: SDXL's size with random weights, 6.9 GB"),
    ] = None,
    side: Annotated[int, typer.Option(min=64, max=2048, help="Pixels per side.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Denoising steps per image.")] = 30,
    minutes: Annotated[float, typer.Option(min=0.1, help="After which no part begins.")] = 8,
    device: Annotated[str, typer.Option(help="cuda, mps, or cpu at toy size.")] = "cuda",
    output: PngFile = Path("gpu.png"),
) -> None:
    """Measure SDXL at full size on this GPU, against its own ceiling."""
    from serve_app.bench.gpu.command import Scale, measure

    sides = tuple(dict.fromkeys(pixels // 8 * 8 for pixels in (side, side // 2, 3 * side // 4)))
    scale = Scale(
        checkpoint,
        sides,
        steps=steps,
        matmul_side=1024 if device == "cpu" else 8192,
        cpu_threads=1 << (min(8, os.cpu_count() or 1).bit_length() - 1),
    )
    measure(scale, device=device, minutes=minutes, output=output)


@bench.command("cost", cls=Command)
def bench_cost(
    runs: Annotated[int, typer.Option(min=2, help="Measured runs.")] = 5,
    images: Annotated[int, typer.Option(min=4, help="Images per workload.")] = 12,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Compare predicted with measured times of images and queues."""
    from serve_app.bench.prediction_error import compare

    compare(runs=runs, images=images, threads=threads)


@bench.command("demo", cls=Command)
def bench_demo(
    count: Annotated[int, typer.Option(min=30, help="Number of scenes.")] = 600,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Score the demo on prompts outside its training set, in English and in Spanish."""
    from serve_app.bench.demo_quality import evaluate

    evaluate(count=count, threads=threads)


@bench.command("step-options", cls=Command)
def bench_step_options(
    images: Annotated[int, typer.Option(min=2, help="Scenes that the judge reads.")] = 150,
    runs: Annotated[int, typer.Option(min=2, help="Paired runs per option.")] = 9,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Print what guidanceInterval and cache save, what they cost, and whether bytes hold."""
    from serve_app.bench.step_options import compare

    compare(images=images, runs=runs, threads=threads)


@bench.command("previews", cls=Command)
def bench_previews(
    images: Annotated[int, typer.Option(min=1, help="Prompts whose previews are compared.")] = 50,
    runs: Annotated[int, typer.Option(min=3, help="Pairs: watched, and unwatched.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Print how like the finished picture previews are, and what they cost."""
    from serve_app.bench.previews import measure

    measure(images=images, runs=runs, threads=threads)


@bench.command("refiner", cls=Command)
def bench_refiner(
    count: Annotated[int, typer.Option(min=30, help="Number of scenes.")] = 300,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Compare the demo's refiner with three controls."""
    from serve_app.bench.demo_refiner import compare

    compare(count=count, threads=threads)


@bench.command("routing", cls=Command)
def bench_routing(
    rounds: Annotated[int, typer.Option(min=1, help="Traces; each runs under both routers.")] = 3,
    seconds: Annotated[float, typer.Option(min=10, max=3600, help="Length of each trace.")] = 90,
    seed: Annotated[int, typer.Option(help="Seed of the first trace.")] = 1,
) -> None:
    """Compare routing by owed work with Ray Serve's own, and the simulator with both."""
    from serve_app.bench.routing_vs_serve import compare

    compare(rounds=rounds, seconds=seconds, seed=seed)


@bench.command("scaling", cls=Command)
def bench_scaling(
    seconds: Annotated[float, typer.Option(min=60, max=3600, help="Length of the load.")] = 180,
    seed: Annotated[int, typer.Option(help="Seed of the load.")] = 1,
    output: PngFile = Path("scaling.png"),
) -> None:
    """Autoscale replicas on four simulated GPUs, under load over HTTP."""
    from serve_app.bench.autoscaling_demo import run

    run(seconds=seconds, seed=seed, output=output)


@bench.command("overhead", cls=Command)
def bench_overhead(
    runs: Annotated[int, typer.Option(min=20, help="Requests per kind.")] = 60,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the steps.")] = 1,
    output: PngFile = Path("overhead.png"),
) -> None:
    """Measure what is not the networks: of a request, part by part, and of a step."""
    from serve_app.bench.overhead.command import measure

    measure(runs=runs, threads=threads, output=output)


@bench.command("png", cls=Command)
def bench_png(runs: Annotated[int, typer.Option(min=3, help="Runs per setting.")] = 9) -> None:
    """Compare PNG encoder settings: milliseconds and size."""
    from serve_app.bench.png_encoders import compare

    compare(runs=runs)


@bench.command("memory", cls=Command)
def bench_memory(
    bodies: Annotated[int, typer.Option(min=1, help="Bodies at a time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Times that they are sent.")] = 3,
    wait: Annotated[float, typer.Option(min=0, help="Seconds after each round.")] = 30,
    on_ray: Annotated[bool, typer.Option("--ray/--uvicorn", help="With Ray, or without.")] = True,
) -> None:
    """Measure what large request bodies take of memory, and give back."""
    from serve_app.bench.body_memory import measure
    from serve_app.cli.ray_environment import memory_environment
    from serve_app.config.settings import Settings

    os.environ.update(memory_environment(Settings().max_body_mib, os.environ))
    measure(bodies=bodies, rounds=rounds, wait=wait, on_ray=on_ray)
