"""`aura bench serve`: measure, print, write JSON, plot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from serve_app.bench.run_record import RunRecord
from serve_app.bench.serve.comparison import compare
from serve_app.bench.serve.plot import plot_results
from serve_app.bench.serve.results import Plan
from serve_app.bench.serve.table import print_results
from serve_app.core.errors import OperatorError

_PACKAGES = ("aura-serve", "torch", "diffusers", "transformers", "ray", "fastapi")
console = Console(highlight=False)


def measure(plan: Plan, only: Sequence[str], output: Path, *, quick: bool) -> None:
    """Print the tables, and write the JSON and the plot beside each other."""
    record = RunRecord.now(_PACKAGES)
    if quick:
        plan = replace(
            plan, rounds=1, requests=plan.workload.kinds, clients=plan.workload.kinds, deadline=1.5
        )
    results = compare(plan, only)
    print_results(results, record, console)
    numbers = output.with_suffix(".json")
    record.write(numbers, results.to_json())
    console.print(f"JSON: {numbers}")
    try:
        plot_results(results, record, output)
    except OperatorError as error:
        console.print(f"[yellow]{error}[/]")
    else:
        console.print(f"Plot: {output}")
