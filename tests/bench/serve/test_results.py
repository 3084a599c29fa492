"""What is printed, plotted and written of a comparison."""

import json
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console

from serve_app.bench.run_record import RunRecord
from serve_app.bench.serve.measurement import Measurement
from serve_app.bench.serve.plot import plot_results
from serve_app.bench.serve.results import CLOSED, OPEN, OVERLOAD, Plan, Results
from serve_app.bench.serve.systems.on_ray import SERVE_BATCH, STRICT
from serve_app.bench.serve.table import print_results


def compared() -> Results:
    """Return two rounds in which strict mode does twice as much, and then three times as much."""
    results = Results(Plan(rounds=2, requests=4, clients=2, deadline=3.0), rate=1.5)
    results.notes = {STRICT: "ours", SERVE_BATCH: "theirs", "engine alone, strict": "no HTTP"}
    results.skipped = {"LitServe": "litserve can't be installed: no network"}
    for load in (CLOSED, OPEN, OVERLOAD):
        for seconds in (1.0, 1.5):
            results.add(load, STRICT, measured(1.0, 4))
            results.add(load, SERVE_BATCH, measured(2 * seconds, 3, {"HTTP 500": 1}))
            if load == CLOSED:
                results.add(load, "engine alone, strict", measured(0.9, 4))
    return results


def measured(seconds: float, count: int, errors: dict[str, int] | None = None) -> Measurement:
    return Measurement(4, seconds, tuple((4, seconds) for _ in range(count)), errors or {})


def test_the_tables_have_every_system_its_errors_and_the_ratios() -> None:
    text = StringIO()
    console = Console(file=text, width=120, highlight=False)
    print_results(compared(), RunRecord.now(), console)
    printed = text.getvalue()
    assert "LitServe is left out: litserve can't be installed: no network" in printed
    assert "2 HTTP 500" in printed
    assert "served ÷ engine, strict, saturated: 0.90 [0.90, 0.90]" in printed
    assert "saturated images/s 3.33 [2.67, 4.00]" in printed
    assert "mean 0.42 [0.33, 0.50]" in printed


def test_the_plot_and_the_numbers_are_written(tmp_path: Path) -> None:
    results, record = compared(), RunRecord.now()
    plot_results(results, record, tmp_path / "serve.png")
    with Image.open(tmp_path / "serve.png") as image:
        assert image.width > 1000
    record.write(tmp_path / "serve.json", results.to_json())
    written = json.loads((tmp_path / "serve.json").read_text())
    assert written["run"]["cores"] >= 1
    assert written["run"]["versions"]["torch"].startswith("2.")
    assert [m["errors"] for m in written["loads"]["open"][SERVE_BATCH]] == [{"HTTP 500": 1}] * 2
