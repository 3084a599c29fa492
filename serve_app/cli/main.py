"""The command line, `python -m serve_app`: names the commands, whose work is in the rooms."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Aura Serve: a self-hosted Stable Diffusion XL image service.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure, on this machine, what the README claims.")
commands.add_typer(bench, name="bench")

Config = Annotated[Path, typer.Option(help="The serve config to start.")]


@commands.command()
def up(config: Config = Path("serve_config.yaml")) -> None:
    """Start the service, on BACKEND_PORT; Ctrl-C or SIGTERM drains it."""
    from serve_app.cli.up import up

    raise typer.Exit(up(config))


@commands.command(hidden=True)
def hold(config: Config = Path("serve_config.yaml")) -> None:
    """The process that holds Ray; started by `up`."""
    from serve_app.cli.up import run_ray

    raise typer.Exit(run_ray(config))


@commands.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "out.png"
    ),
    negative_prompt: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many pictures, 1 to 8.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first picture's; else drawn.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 150.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the prompt counts, 0 to 20.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="As euler, euler_a, dpmpp_2m_karras, unipc, heun or lcm.")
    ] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="As 16:9; else square.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name of MODELS_FILE; else the default.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A name of MODELS_FILE, or name:weight; once for each."),
    ] = None,
    refine: Annotated[
        bool | None, typer.Option(help="Whether the refiner takes the last steps.")
    ] = None,
) -> None:
    """Make a picture without a server: the same engine, no Ray."""
    from serve_app.cli.generate import generate

    wishes = {
        "prompt": prompt,
        "negativePrompt": negative_prompt,
        "imageCount": count,
        "seed": seed,
        "steps": steps,
        "guidanceScale": guidance_scale,
        "sampler": sampler,
        "aspectRatio": aspect_ratio,
        "width": width,
        "height": height,
        "model": model,
        "loras": lora,
        "refine": refine,
    }
    raise typer.Exit(generate(wishes, output))


@commands.command()
def download(
    what: Annotated[
        str, typer.Argument(help="sdxl, sdxl-refiner, all, or the OWNER/NAME of a repository.")
    ] = "all",
    folder: Annotated[Path, typer.Option(help="Where the models' folders lie.")] = Path("models"),
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; else the one here, else main.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence that is shown.")
    ] = False,
) -> None:
    """Fetch real weights, verified, and set .env.local; run again, it goes on where it stopped."""
    from serve_app.cli.download import DownloadOptions, download

    raise typer.Exit(download(DownloadOptions(what, folder, revision, accept_license)))


@commands.command()
def doctor(
    config: Config = Path("serve_config.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and no more.")] = False,
) -> None:
    """Find what is wrong before the service starts, each with what mends it."""
    from serve_app.cli.doctor import doctor

    raise typer.Exit(doctor(config, as_json=as_json))


@commands.command()
def simulate(
    gpus: Annotated[
        int | None, typer.Option(min=2, help="GPUs of the cluster: 256 where steady, else 16.")
    ] = None,
    trace: Annotated[
        str, typer.Option(help="steady, bursts, day, or a CSV file with at, steps and more.")
    ] = "steady",
    load: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Share of what full batches could do, on the mean: 0.85 where steady, else 0.25.",
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Length of a trace: 90 where steady, else 960.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first trace that is drawn.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "simulation.png"
    ),
) -> None:
    """A cluster of any size on a virtual clock: a steady trace compares routing, others scaling."""
    from serve_app.cli.simulate import SimulateOptions, simulate

    raise typer.Exit(simulate(SimulateOptions(gpus, trace, load, seconds, seed, output)))


@commands.command()
def check_config(
    files: Annotated[list[Path], typer.Argument(help="Serve configs, or RayService manifests.")],
) -> None:
    """Find misspelt keys, which Serve passes over in silence. Looks at the files alone."""
    from serve_app.cli.check_config import check_configs

    raise typer.Exit(check_configs(files))


@bench.command("engine")
def bench_engine(
    runs: Annotated[int, typer.Option(min=3, help="Paired runs of each row.")] = 9,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Steps of each image.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of both sides.")] = 1,
) -> None:
    """The engine against the bare stock pipeline, on the demo checkpoint."""
    from serve_app.bench.engine_vs_stock import compare

    compare(runs=runs, steps=steps, threads=threads)


@bench.command("cost")
def bench_cost(
    runs: Annotated[int, typer.Option(min=2, help="Runs that are counted.")] = 5,
    images: Annotated[int, typer.Option(min=4, help="Images of each mixture.")] = 12,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """What images and queues are predicted to take, against what they take."""
    from serve_app.bench.prediction_error import compare

    compare(runs=runs, images=images, threads=threads)


@bench.command("demo")
def bench_demo(
    count: Annotated[int, typer.Option(min=30, help="Scenes asked for.")] = 600,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """How well the demo draws what training never showed it, in English and in Spanish."""
    from serve_app.bench.demo_quality import evaluate

    evaluate(count=count, threads=threads)


@bench.command("refiner")
def bench_refiner(
    count: Annotated[int, typer.Option(min=30, help="Scenes weighed.")] = 300,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Whether the demo's refiner earns its place, against three controls."""
    from serve_app.bench.demo_refiner import compare

    compare(count=count, threads=threads)


@bench.command("sheet")
def bench_sheet(
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "contact-sheet.png"
    ),
) -> None:
    """A contact sheet: what the demo draws, with the prompts underneath."""
    from serve_app.bench.contact_sheet import write_contact_sheet

    write_contact_sheet(output)


@bench.command("routing")
def bench_routing(
    rounds: Annotated[int, typer.Option(min=1, help="Traces, each under both.")] = 3,
    seconds: Annotated[float, typer.Option(min=10, help="Of each trace.")] = 90,
    seed: Annotated[int, typer.Option(help="Of the first trace.")] = 1,
) -> None:
    """Routing by owed work against Ray Serve's own, and the simulator against both."""
    from serve_app.bench.routing_vs_serve import compare

    compare(rounds=rounds, seconds=seconds, seed=seed)


@bench.command("scaling")
def bench_scaling(
    seconds: Annotated[float, typer.Option(min=60, help="Of load.")] = 180,
    seed: Annotated[int, typer.Option(help="Of the load.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "scaling.png"
    ),
) -> None:
    """Replicas that come and go with the work, on four GPUs that are not there, over HTTP."""
    from serve_app.bench.autoscaling_demo import run

    run(seconds=seconds, seed=seed, output=output)


@bench.command("http")
def bench_http(
    runs: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 100,
) -> None:
    """A request outside the engine, part by part, through Ray and HTTP."""
    from serve_app.bench.http_overhead import compare

    compare(runs=runs)


@bench.command("png")
def bench_png(runs: Annotated[int, typer.Option(min=3, help="Runs of each setting.")] = 9) -> None:
    """PNG encoder settings: milliseconds and size."""
    from serve_app.bench.png_encoders import compare

    compare(runs=runs)


def main() -> None:
    """Run the command that the arguments name."""
    commands(prog_name="python -m serve_app")
