"""The whole command at toy length: every system answers, and everything is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.bench.serve.results import CLOSED, OPEN, OVERLOAD
from serve_app.bench.serve.systems.on_ray import FAST, SERVE_BATCH, STRICT
from serve_app.bench.serve.systems.programs import LITSERVE, LOCKED

TUTORIAL = "Ray's tutorial"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_system_is_measured_under_every_load(tmp_path: Path) -> None:
    plot = tmp_path / "serve.png"
    command = [sys.executable, "-m", "serve_app", "bench", "serve", "--quick", "-o", str(plot)]
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(plot.with_suffix(".json").read_text())
    systems = {STRICT, FAST, SERVE_BATCH, TUTORIAL, LITSERVE, LOCKED} - set(written["skipped"])
    assert set(written["skipped"]) <= {LITSERVE}, written["skipped"]
    for load in (CLOSED, OPEN, OVERLOAD):
        assert systems <= set(written["loads"][load])
    for name in systems - {TUTORIAL}:  # whose pipeline several threads run at once
        (closed,) = written["loads"][CLOSED][name]
        assert closed["errors"] == {}, name
    assert plot.stat().st_size > 10_000
