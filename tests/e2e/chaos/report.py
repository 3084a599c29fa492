"""`Row`: one line of the table with which a run of the chaos suite ends."""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

_ROWS: list["Row"] = []


@dataclass(frozen=True, slots=True)
class Row:
    """What was done, what came of it in figures, and what must come of it."""

    done: str
    happened: str
    must: str


def report(done: str, happened: str, must: str) -> None:
    """Add a row to the table, and print it at once for whoever watches."""
    _ROWS.append(Row(done, happened, must))
    print(f"\n{done}: {happened}  (must: {must})", flush=True)


def print_report(console: Console) -> None:
    """Print the table of all rows so far, if there are any."""
    if not _ROWS:
        return
    table = Table(title="Chaos", box=box.ROUNDED, show_lines=True, title_style="bold")
    table.add_column("what was done", ratio=3)
    table.add_column("what happened", ratio=4, style="cyan")
    table.add_column("what must happen", ratio=3, style="dim")
    for row in _ROWS:
        table.add_row(row.done, row.happened, row.must)
    console.print(table)
