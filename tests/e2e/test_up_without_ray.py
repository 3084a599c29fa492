"""`aura up` when Ray breaks: it ends within seconds, and leaves no process behind."""

import errno
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.cli.console import FAILED, LOST, OK
from tests.support.running_up import RunningUp, post, running
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long]

BODY = {"prompt": "a red circle", "steps": 150, "imageCount": 1, "seed": 5}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("raylet/raylet", "Ray is lost (its raylet has ended), so the service is ended"),
        ("gcs/gcs_server", "Ray is lost (its gcs_server has ended), so the service is ended"),
        ("", "the process that runs Ray ended by signal 9"),
    ],
)
def test_up_ends_with_everything_it_started_when_a_part_of_ray_is_killed(
    environment: dict[str, str], tmp_path: Path, name: str, sentence: str
) -> None:
    with RunningUp(environment, tmp_path) as up:
        up.wait_ready()
        session = up.session()
        assert len(session) > 5
        (up.find(name) if name else up.runner).kill()
        assert up.process.wait(30) == 1
        assert running(session) == []
        until(partial(_is_refused, up.port), 10)  # ended processes take a moment to vanish
        assert sentence in up.stderr
        assert up.stderr.splitlines()[-1].startswith("logs: ")


def _is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_up_ends_when_ray_stops_answering(environment: dict[str, str], tmp_path: Path) -> None:
    with RunningUp(environment, tmp_path) as up:
        up.wait_ready()
        session = up.session()
        up.find("gcs/gcs_server").suspend()
        assert up.process.wait(60) == 1
        assert running(session) == []
        assert "Ray is lost (it has not answered for 20 s)" in up.stderr


def test_up_survives_the_death_of_serve_s_controller_and_of_a_replica(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with RunningUp(environment, tmp_path) as up:
        up.wait_ready()
        for name in ("ray::ServeController", "ray::ServeReplica:aura:Refiner"):
            killed = up.find(name)
            killed.kill()
            up.wait_for(partial(_is_replaced, up, name, killed))
        up.wait_ready()
        body = {"prompt": "a red circle", "steps": 5, "imageCount": 1}
        up.wait_for(lambda: httpx.post(f"{up.address}/generate", json=body).status_code == 201)
        up.terminate()
        assert up.process.wait(60) == 0
        assert "error" not in up.stderr


def _is_replaced(up: RunningUp, name: str, killed: psutil.Process) -> bool:
    found = [p for p in up.session() if name in " ".join(p.cmdline()[:1])]
    return bool(found) and killed not in found


def test_sigterm_is_obeyed_within_seconds_while_ray_does_not_answer(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with RunningUp(environment, tmp_path) as up:
        up.wait_ready()
        session = up.session()
        for name in ("raylet/raylet", "gcs/gcs_server"):
            up.find(name).suspend()
        started = time.monotonic()
        up.terminate()
        up.terminate()
        assert up.process.wait(30) in (OK, FAILED)  # the ingresses may have answered
        assert time.monotonic() - started < 30
        assert running(session) == []


def test_a_second_signal_ends_the_drain_and_the_next_start_finishes_what_was_spooled(
    environment: dict[str, str], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    places = {"DRAIN_SPOOL": str(spool), "LEDGER_FILE": str(tmp_path / "ledger.sqlite")}
    with RunningUp(environment | places, tmp_path) as up, ThreadPoolExecutor(2) as threads:
        up.wait_ready()
        session = up.session()
        calls = [threads.submit(post, up.address, BODY, key) for key in ("spooled", "")]
        owed = [0.0]

        def is_halfway() -> bool:
            owed.append(httpx.get(f"{up.address}/health", timeout=10).json()["owedSeconds"])
            return 0 < owed[-1] < 0.8 * max(owed)

        until(is_halfway, 60)
        up.process.send_signal(signal.SIGINT)
        up.wait_for(lambda: "draining: " in up.stderr)
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(60) == LOST
        assert running(session) == []
        assert [call.result().json()["error"]["code"] for call in calls] == ["DRAINING"] * 2
        *_, spooled, lost, stopped, _ = up.stderr.splitlines()
        assert spooled == f"1 request in {spool}, which the next start finishes"
        assert lost == "1 request lost, which had been accepted"
        assert stopped == "stopped"
    (file,) = spool.iterdir()
    with RunningUp(environment | places, tmp_path) as up:
        up.wait_ready()
        again = post(up.address, BODY, "spooled").json()
        assert again["meta"]["jobId"] == file.stem
        assert again["images"] == post(up.address, BODY).json()["images"]
        resumed = until(lambda: re.search(rf"{file.stem}-0 goes on from step (\d+)", up.stdout))
        assert int(resumed[1]) > 0
        up.terminate()
        assert up.process.wait(60) == OK
