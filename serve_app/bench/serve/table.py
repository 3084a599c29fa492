"""The tables of `aura bench serve`, and the ratios that it is run for."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from statistics import median

from rich.console import Console
from rich.table import Table

from serve_app.bench.run_record import RunRecord
from serve_app.bench.serve.measurement import Measurement
from serve_app.bench.serve.results import CLOSED, OPEN, OVERLOAD, Results
from serve_app.bench.serve.systems.engine_alone import ENGINE
from serve_app.bench.serve.systems.on_ray import FAST, SERVE_BATCH, STRICT

Value = Callable[[Measurement], float]
_THROUGHPUT: Value = attrgetter("throughput")
_SECONDS: dict[str, Value] = {
    "mean s": lambda load: load.mean,
    "p50 s": lambda load: load.latency(0.5),
    "p95 s": lambda load: load.latency(0.95),
    "p95 s a step": lambda load: load.latency_per_step(0.95),
}


def print_results(results: Results, record: RunRecord, console: Console) -> None:
    """Print a table for each load, and ours as ratios to `@serve.batch` and to the engine."""
    plan = results.plan
    steps = "/".join(map(str, plan.workload.steps))
    sizes = ", ".join(f"{width} x {height}" for width, height in plan.workload.sizes)
    console.print(
        f"The demo at {sizes}, steps {steps}; {plan.batch} images together, {plan.threads} CPU "
        f"thread(s). {_rounds(results)}. {record.summary}",
        soft_wrap=True,
    )
    for name, note in results.notes.items():
        console.print(f"  [bold]{name}[/]: {note}", soft_wrap=True, style="dim")
    for name, reason in results.skipped.items():
        console.print(f"  [bold]{name}[/] is left out: {reason}", soft_wrap=True, style="yellow")
    console.print(_closed(results))
    console.print(_open(results))
    console.print(_overload(results))
    for line in _ratios(results):
        console.print(line, soft_wrap=True)


def _rounds(results: Results) -> str:
    plan = results.plan
    if plan.rounds == 1:
        return f"One round of {plan.requests} requests for each system and load, in turns"
    return (
        f"{plan.rounds} rounds of {plan.requests} requests for each system and load, in turns: "
        "medians \\[least, greatest]"
    )


def _closed(results: Results) -> Table:
    table = _new_table(f"Saturated: {results.plan.clients} clients, each with one request")
    for heading in ("images/s", "mean s", "p95 s a step", "errors"):
        table.add_column(heading, justify="right")
    for name in results.systems(CLOSED):
        table.add_row(
            name,
            _cell(results.values(CLOSED, name, _THROUGHPUT)),
            _cell(results.values(CLOSED, name, _SECONDS["mean s"])),
            _cell(results.values(CLOSED, name, _SECONDS["p95 s a step"]), 3),
            _errors(results, CLOSED, name),
            style=_style(name),
        )
    return table


def _open(results: Results) -> Table:
    table = _new_table(f"Open loop: {results.rate:.2f} requests a second, Poisson")
    for heading in (*_SECONDS, "errors"):
        table.add_column(heading, justify="right")
    for name in results.systems(OPEN):
        cells = [
            _cell(results.values(OPEN, name, value), 3 if "step" in heading else 2)
            for heading, value in _SECONDS.items()
        ]
        table.add_row(name, *cells, _errors(results, OPEN, name), style=_style(name))
    return table


def _overload(results: Results) -> Table:
    table = _new_table(
        f"Overload: {results.overload_rate:.2f} requests a second, given up after "
        f"{results.plan.deadline:g} s"
    )
    for heading in ("goodput, images/s", "in time", "errors"):
        table.add_column(heading, justify="right")
    for name in results.systems(OVERLOAD):
        table.add_row(
            name,
            _cell(results.values(OVERLOAD, name, _THROUGHPUT)),
            f"{results.median(OVERLOAD, name, lambda load: load.in_time):.0%}",
            _errors(results, OVERLOAD, name),
            style=_style(name),
        )
    return table


def _ratios(results: Results) -> list[str]:
    """Return the lines that say what the tables are for, each from pairs of the same round."""
    measured, lines = results.systems(CLOSED), []
    for name, mode in ((STRICT, "strict"), (FAST, "fast")):
        engine = f"{ENGINE}, {mode}"
        if name in measured and engine in measured:
            served = results.ratios(CLOSED, name, engine, _THROUGHPUT)
            lines.append(f"served ÷ engine, {mode}, saturated: {_ratio(served)}")
    for name in (STRICT, FAST):
        if name in measured and SERVE_BATCH in measured:
            parts = [_ratio(results.ratios(CLOSED, name, SERVE_BATCH, _THROUGHPUT))]
            parts += [
                f"{heading.removesuffix(' s')} {_ratio(ratios)}"
                for heading, value in _SECONDS.items()
                if (ratios := results.ratios(OPEN, name, SERVE_BATCH, value))
            ]
            lines.append(
                f"{name} ÷ {SERVE_BATCH}: saturated images/s {parts[0]}; "
                f"open loop {', '.join(parts[1:])}".replace(" s a step", " a step")
            )
    return lines


def _new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("system")
    return table


def _style(name: str) -> str | None:
    return "bold" if name in (STRICT, FAST) else None


def _cell(values: Sequence[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    spread = f"{min(values):.{digits}f}, {max(values):.{digits}f}"
    return f"{median(values):.{digits}f} [dim]\\[{spread}][/]"


def _ratio(ratios: Sequence[float]) -> str:
    middle = f"[bold]{median(ratios):.2f}[/]"
    if len(ratios) == 1:
        return middle
    return f"{middle} \\[{min(ratios):.2f}, {max(ratios):.2f}]"


def _errors(results: Results, load: str, name: str) -> str:
    found = results.errors(load, name)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "0"
