"""`aura up` on the demo: killed itself, its child that runs Ray killed, and a second SIGTERM."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.cli.console import FAILED, LOST, REFUSED
from serve_app.testing.faulty_service import ORIGIN
from tests.e2e.chaos.load import Answer, Call, Load
from tests.e2e.chaos.report import report
from tests.e2e.chaos.verdict import Kind, judge
from tests.support.running_up import RunningUp, running
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

IMAGES = 6


@pytest.fixture
def up(environment: dict[str, str], tmp_path: Path) -> Iterator[RunningUp]:
    """Start `aura up` with the demo."""
    with RunningUp(environment, tmp_path, ALLOWED_ORIGINS=ORIGIN) as up:
        up.wait_ready()
        yield up


def body(seed: int) -> dict[str, Any]:
    return {"prompt": "a red heart", "seed": seed, "steps": 150, "imageCount": 1}


def ends(answers: list[Answer]) -> dict[str, int]:
    """Return how often each class of answer occurred; a named error is JSON with CORS."""
    return dict(Counter(str(judge(answer, compares=False)) for answer in answers))


def begin(load: Load, up: RunningUp, key: str = "") -> None:
    """Send the images, each under a key of its own if there is one; wait until they are begun."""
    load.send(Call(body(seed), key=f"{key}-{seed}" if key else None) for seed in range(IMAGES))
    until(lambda: httpx.get(f"{up.address}/health", timeout=10).json()["owedSeconds"] > 0, 60)


def test_a_killed_up_drains_and_leaves_no_process(up: RunningUp) -> None:
    session = up.session()
    with Load(up.address) as load:
        begin(load, up)
        started = time.monotonic()
        up.process.kill()
        answers = load.answers(120)
        until(lambda: not running(session), 120)
    seconds = time.monotonic() - started
    report(
        f"kill -9 of `aura up`, {IMAGES} images under way",
        f"{ends(answers)}; every process gone after {seconds:.1f} s",
        "drained: all made, and no process left",
    )
    assert ends(answers) == {"made": IMAGES}


def test_a_killed_child_that_runs_ray_ends_the_service(up: RunningUp) -> None:
    session = up.session()
    with Load(up.address) as load:
        begin(load, up)
        started = time.monotonic()
        up.runner.kill()
        status = up.process.wait(60)
        seconds = time.monotonic() - started
        answers = load.answers(120)
    report(
        f"kill -9 of the child of `aura up` that runs Ray, {IMAGES} images under way",
        f"{ends(answers)}; exit status {status} after {seconds:.1f} s, "
        f"{len(running(session))} processes left",
        "ends by itself with an exit status other than 0",
    )
    assert status == FAILED
    assert not running(session)


def test_a_second_sigterm_while_draining_says_that_images_were_lost(up: RunningUp) -> None:
    with Load(up.address) as load:
        begin(load, up)
        up.terminate()
        up.wait_for(lambda: "draining: " in up.stderr)
        up.terminate()
        status = up.process.wait(120)
        answers = load.answers(120)
        (line,) = [line for line in up.stderr.splitlines() if " lost, " in line]
    lost = sum(answer.status != 201 for answer in answers)
    report(
        f"a second SIGTERM while `aura up` drains {IMAGES} images, without DRAIN_SPOOL",
        f"{ends(answers)}; `{line}`; exit status {status}",
        "the exit status is not 0 when something accepted was lost",
    )
    assert lost > 0
    kinds = {judge(answer, compares=False).kind for answer in answers}
    assert kinds <= {Kind.MADE, Kind.ERROR}
    assert line.startswith(f"{lost} request")
    assert status == LOST


def test_a_second_service_on_the_same_ledger_refuses_to_start_and_the_first_goes_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    (tmp_path / "second").mkdir()
    settings = {"ALLOWED_ORIGINS": ORIGIN, "LEDGER_FILE": str(ledger)}
    with RunningUp(environment, tmp_path, **settings) as first, Load(first.address) as load:
        first.wait_ready()
        begin(load, first, key="first")
        with RunningUp(environment, tmp_path / "second", **settings) as second:
            status = second.process.wait(60)
            (line,) = second.stderr.strip().splitlines()
        answers = load.answers(120)
    report(
        f"a second `aura up` on one ledger file, while the first makes {IMAGES} keyed images",
        f"`{line.replace(str(tmp_path), '')}`; exit status {status}; the first: {ends(answers)}",
        "the second refuses to start, by name",
    )
    assert f"LEDGER_FILE={ledger} is in use by another service" in line
    assert status == REFUSED
    assert ends(answers) == {"made": IMAGES}
