"""The commands and options of `aura`; each command imports its work when it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from serve_app import __version__
from serve_app.cli.bench import bench
from serve_app.cli.command_line import Command, CommandGroup, PngFile, print_help_alone, run

commands = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Aura Serve: a self-hosted Stable Diffusion XL image service.",
)
commands.add_typer(bench, name="bench")
demo = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    callback=print_help_alone,
    help="Show what the bundled demo checkpoint draws.",
)
commands.add_typer(demo, name="demo")

Config = Annotated[Path, typer.Option(help="The serve config.")]


@commands.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version, or the help where no command is named."""
    if version:
        typer.echo(f"aura {__version__}")
        raise typer.Exit
    print_help_alone(context)


@commands.command(cls=Command)
def up(config: Config = Path("serve_config.yaml")) -> None:
    """Start the service on BACKEND_PORT. Ctrl-C or SIGTERM drains it, then stops it."""
    from serve_app.cli.up import up

    raise typer.Exit(up(config))


@commands.command("_run", cls=Command, hidden=True)
def run_ray(
    report_fd: Annotated[int, typer.Option(help="The pipe to `up`.")],
    config: Config = Path("serve_config.yaml"),
) -> None:
    """Run Ray and the application in this process; `up` starts it."""
    from serve_app.cli.run_ray import run_ray

    raise typer.Exit(run_ray(config, report_fd))


@commands.command(cls=Command)
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: PngFile = Path("out.png"),
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the image must not show.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images, 1 to 8.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image. Default: random.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 150.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the image follows the prompt, 0 to 20.")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH", help="Noise levels between which guidance is on, in sigma."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="What steps reuse of earlier ones: off or deepcache.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="For example euler, euler_a, dpmpp_2m_karras, unipc, heun or lcm."),
    ] = None,
    aspect_ratio: Annotated[
        str | None, typer.Option(help="Aspect ratio, for example 16:9. Default: square.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels, a multiple of 8.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of MODELS_FILE. Default: the configured checkpoint.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            help="A LoRA of MODELS_FILE, and its weight; may be repeated.",
        ),
    ] = None,
    refine: Annotated[
        bool | None, typer.Option(help="Whether the refiner makes the last steps.")
    ] = None,
) -> None:
    """Make images without a server: the same engine, no Ray."""
    from serve_app.cli.generate import generate

    fields = {
        "prompt": prompt,
        "negativePrompt": negative_prompt,
        "imageCount": count,
        "seed": seed,
        "steps": steps,
        "guidanceScale": guidance_scale,
        "guidanceInterval": guidance_interval,
        "cache": cache,
        "sampler": sampler,
        "aspectRatio": aspect_ratio,
        "width": width,
        "height": height,
        "model": model,
        "loras": lora,
        "refine": refine,
    }
    raise typer.Exit(generate(fields, output))


@commands.command(cls=Command)
def download(
    what: Annotated[
        str, typer.Argument(help="sdxl, sdxl-refiner, all, or a repository as OWNER/NAME.")
    ] = "all",
    folder: Annotated[Path, typer.Option(help="Directory for downloaded models.")] = Path("models"),
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit. Default: the downloaded one, else main."),
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence without a question.")
    ] = False,
) -> None:
    """Download weights, verify them and write .env.local. Run it again to resume."""
    from serve_app.cli.download import DownloadOptions, download

    raise typer.Exit(download(DownloadOptions(what, folder, revision, accept_license)))


@commands.command(cls=Command)
def doctor(
    config: Config = Path("serve_config.yaml"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all weights too, and check every value.")
    ] = False,
    invariance: Annotated[
        bool,
        typer.Option(
            "--invariance",
            help="Print instead which numbers of rows keep the bits of a row, with the settings' "
            "device and number of CPU threads: see MODEL_DETERMINISM.",
        ),
    ] = False,
) -> None:
    """Check the machine, the models and the settings; print a fix for each problem."""
    if invariance:
        if as_json or deep:
            raise typer.BadParameter("--invariance takes neither --json nor --deep")
        from serve_app.cli.invariance import invariance as print_invariance

        raise typer.Exit(print_invariance())
    from serve_app.cli.doctor import doctor

    raise typer.Exit(doctor(config, as_json=as_json, deep=deep))


@commands.command(cls=Command)
def simulate(
    gpus: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=4096,
            help="GPUs of the cluster. Default: 256 for a steady trace, 4 for a flood, else 16.",
        ),
    ] = None,
    trace: Annotated[
        str,
        typer.Option(
            help="steady, bursts, day, flood, overload, or a CSV file with the columns at, steps "
            "and more."
        ),
    ] = "steady",
    load: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=10,
            help="Mean load as a share of the capacity at full batches. Default: 0.85 for a "
            "steady trace, else 0.25.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=86400,
            help="Length of a trace. Default: 90 for a steady trace, 60 for a flood, else 960.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first trace.")] = 1,
    output: PngFile = Path("simulation.png"),
) -> None:
    """Simulate a cluster.

    A steady trace compares routing, one with several callers what they get, overload shows
    admission, others compare autoscaling.
    """
    from serve_app.cli.simulate import SimulateOptions, simulate

    raise typer.Exit(simulate(SimulateOptions(gpus, trace, load, seconds, seed, output)))


@commands.command(cls=Command)
def check_config(
    files: Annotated[list[Path], typer.Argument(help="Serve configs, or RayService manifests.")],
) -> None:
    """Find unknown keys, which Serve ignores silently. Reads the files and nothing else."""
    from serve_app.cli.check_config import check_configs

    raise typer.Exit(check_configs(files))


@demo.command("sheet", cls=Command)
def demo_sheet(
    output: PngFile = Path("contact-sheet.png"),
) -> None:
    """Write a contact sheet: images of the demo above their prompts."""
    from serve_app.cli.console import REFUSED, console, print_error
    from serve_app.core.errors import OperatorError
    from serve_app.demo.contact_sheet import write_contact_sheet

    try:
        write_contact_sheet(output)
    except OperatorError as error:
        print_error(error)
        raise typer.Exit(REFUSED) from None
    console.print(f"Contact sheet: {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code.

    Without `arguments`, those of this process; usage lines show what the reader typed.
    """
    as_module = Path(sys.argv[0]).name == "__main__.py"
    return run(commands, "python -m serve_app" if as_module else "aura", arguments)
