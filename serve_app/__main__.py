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
    from serve_app.service import up

    raise typer.Exit(up(config))


@commands.command(hidden=True)
def hold(config: Config = Path("serve_config.yaml")) -> None:
    """The process that holds Ray; started by `up`."""
    from serve_app.service import hold

    raise typer.Exit(hold(config))


@bench.command("engine")
def bench_engine(
    runs: Annotated[int, typer.Option(min=3, help="Paired runs of each row.")] = 9,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Steps of each image.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of both sides.")] = 1,
) -> None:
    """The engine against the bare stock pipeline, on the stand-in checkpoint."""
    from serve_app.bench.engine import compare

    compare(runs=runs, steps=steps, threads=threads)


@bench.command("http")
def bench_http(
    runs: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 100,
) -> None:
    """A request outside the engine, part by part, through Ray and HTTP."""
    from serve_app.bench.http import compare

    compare(runs=runs)


@bench.command("png")
def bench_png(runs: Annotated[int, typer.Option(min=3, help="Runs of each setting.")] = 9) -> None:
    """PNG encoder settings: milliseconds and size."""
    from serve_app.bench.png import compare

    compare(runs=runs)


if __name__ == "__main__":
    commands(prog_name="python -m serve_app")
