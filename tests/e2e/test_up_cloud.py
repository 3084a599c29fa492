"""`aura up` with a key of the cloud: it draws there, and no process and no file shows the key."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

from serve_app.cli.session import kill_all, processes_of
from serve_app.config.secret_file import VARIABLE
from tests.support.gemini_stand_in import KEY, MODEL, GeminiStandIn, gemini_stand_in
from tests.support.ports import free_port
from tests.support.running_up import RunningUp, post
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long]

BODY = {"prompt": "a red circle", "imageCount": 1}
OTHER_KEY = "a-key-of-the-callers-canary"  # in API_KEYS, a secret too


@pytest.fixture
def gemini() -> Iterator[GeminiStandIn]:
    with gemini_stand_in() as server:
        yield server


def environments(up: RunningUp) -> dict[int, dict[str, str]]:
    """Return the environment of each process of the service but `up` itself, which was given it."""
    found: dict[int, dict[str, str]] = {}
    for process in up.session():
        try:
            found[process.pid] = process.environ()
        except psutil.Error:
            continue
    return found


def texts_below(folder: Path) -> str:
    """Return what all files of a folder hold, but those that are not texts."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def test_the_cloud_draws_and_nothing_of_the_service_shows_the_key(
    environment: dict[str, str], tmp_path: Path, gemini: GeminiStandIn
) -> None:
    metrics_port = str(free_port())
    secrets = {"AURA_GEMINI_API_KEY": KEY, "GEMINI_API_KEY": f"{KEY}-of-the-shell"}
    settings = {"AURA_GEMINI_BASE_URL": gemini.url, "METRICS_PORT": metrics_port}
    keys = {"API_KEYS": OTHER_KEY}
    headers = {"Authorization": f"Bearer {OTHER_KEY}"}
    with RunningUp(environment | secrets | settings | keys, tmp_path) as up:
        up.wait_ready()
        url = f"{up.address}/generate"
        drawn = httpx.post(url, json=BODY, headers=headers, timeout=60)
        local = httpx.post(url, json={**BODY, "model": "demo"}, headers=headers, timeout=60)
        assert drawn.json()["meta"]["model"] == MODEL, drawn.text
        assert local.json()["meta"]["seeds"], local.text
        assert len(gemini.calls) == 1
        assert "in Google's cloud" in up.stderr
        found = environments(up)
        assert len(found) > 5  # Ray's own processes, the replicas, and the proxy
        assert not [pid for pid, environ in found.items() if KEY in str(environ)]
        assert not [pid for pid, environ in found.items() if OTHER_KEY in str(environ)]
        (file,) = {environ[VARIABLE] for environ in found.values() if VARIABLE in environ}
        assert Path(file).stat().st_mode & 0o777 == 0o600
        commands = [" ".join(process.cmdline()) for process in up.session()]
        logs = Path(_match(r"logs +(\S+)", up.stderr)).resolve()
        metrics = until(lambda: _metrics(metrics_port), 60)
        answers = [
            httpx.get(f"{up.address}{path}", headers=headers, timeout=20).text
            for path in ("/health", "/openapi.json", "/licenses", "/v1/models", "/jobs")
        ]
        dashboard = _dashboard(up)
        up.terminate()
        assert up.process.wait(90) == 0, up.stderr
    assert not Path(file).exists()
    written = texts_below(logs)
    assert "aura" in written
    shown = [*commands, metrics, *answers, dashboard, written, texts_below(tmp_path), drawn.text]
    assert not [text[:80] for text in shown if KEY in text or OTHER_KEY in text]
    assert "aura_cloud_calls_total" in metrics


def test_a_key_in_the_bare_environment_leaves_the_demo_local(
    environment: dict[str, str], tmp_path: Path, gemini: GeminiStandIn
) -> None:
    foreign = {"GEMINI_API_KEY": KEY, "AURA_GEMINI_BASE_URL": gemini.url}
    with RunningUp(environment | foreign, tmp_path) as up:
        up.wait_ready()
        answer = post(up.address, BODY)
        assert answer.json()["meta"]["model"] == "demo"
        assert not gemini.calls
        assert "AURA_GEMINI_API_KEY alone counts" in up.stderr
        assert not [pid for pid, environ in environments(up).items() if KEY in str(environ)]
        up.terminate()
        assert up.process.wait(90) == 0, up.stderr


def test_the_file_of_secrets_goes_when_up_is_killed_while_it_starts(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with (
        TemporaryDirectory(dir="/tmp") as folder,  # Ray's sockets need a short path
        RunningUp(environment | {"API_KEYS": OTHER_KEY, "RAY_TMPDIR": folder}, tmp_path) as up,
    ):
        (runner,) = until(up.process.children, 60)
        (file,) = Path(folder).glob("aura-secrets-*.json")
        up.process.kill()
        try:
            until(lambda: not file.exists(), 60)
        finally:
            kill_all(processes_of(runner.pid))


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def _metrics(port: str) -> str:
    """Return the metrics once a call of the cloud is among them, "" before."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    return text if "aura_cloud_calls_total" in text else ""


def _dashboard(up: RunningUp) -> str:
    """Return what Ray's dashboard and `serve status` know of the application."""
    for process in up.session():
        for connection in process.net_connections("tcp"):
            with suppress(httpx.HTTPError):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port != up.port:
                    url = f"http://127.0.0.1:{connection.laddr.port}/api/serve/applications/"
                    answer = httpx.get(url, timeout=10)
                    if "controller_info" in answer.text:
                        return answer.text
    raise AssertionError("no dashboard answers")
