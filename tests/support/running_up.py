"""`RunningUp`: an `aura up` of its own process, as a person or systemd would start it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil

from tests.support.ports import free_port
from tests.support.waiting import until

START_TIMEOUT_S = 240.0


class RunningUp:
    """A started `aura up`; on exit it is killed with all that it started, if it still runs."""

    def __init__(
        self, environment: Mapping[str, str], folder: Path, *arguments: str, **settings: str
    ) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._files: list[IO[str]] = [
            (folder / name).open("w+", encoding="utf-8") for name in ("stdout", "stderr")
        ]
        defaults = {"BACKEND_PORT": str(self.port), "MODEL_CPU_THREADS": "1"}
        self.process = psutil.Popen(
            [sys.executable, "-m", "serve_app", "up", *arguments],
            env={**environment, **defaults, **settings},
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self.session() if self.process.poll() is None else []
        for process in [*session, self.process]:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()
        for file in self._files:
            file.close()

    @property
    def stdout(self) -> str:
        """What it has written for programs: a line for each request."""
        return self._written(0)

    @property
    def stderr(self) -> str:
        """What it has written for people."""
        return self._written(1)

    def wait_ready(self) -> None:
        """Wait until an image could be made."""

        def ready() -> bool:
            assert self.process.poll() is None, self.stderr
            try:
                return httpx.get(f"{self.address}/health", timeout=10).status_code == 200
            except httpx.HTTPError:
                return False

        until(ready, START_TIMEOUT_S)
        self.wait_for(lambda: "Ctrl-C" in self.stderr)  # the summary, which says how to stop it

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        until(condition, START_TIMEOUT_S)

    def terminate(self) -> None:
        """Send SIGTERM, as systemd and Docker do."""
        self.process.send_signal(signal.SIGTERM)

    @property
    def runner(self) -> psutil.Process:
        """The process that runs Ray, the leader of its session."""
        (runner,) = self.process.children()
        return runner

    def session(self) -> list[psutil.Process]:
        """Return all processes of the service but `up` itself."""
        children = self.process.children()
        if not children:
            return []
        return [p for p in psutil.process_iter() if _session_of(p) == children[0].pid]

    def find(self, name: str) -> psutil.Process:
        """Return the one process of the service whose command line has a name in it."""
        (found,) = [p for p in self.session() if name in " ".join(p.cmdline()[:1])]
        return found

    def _written(self, index: int) -> str:
        return Path(self._files[index].name).read_text(encoding="utf-8")


def post(address: str, body: Mapping[str, Any], key: str = "") -> httpx.Response:
    """Ask a service for images, perhaps under an idempotency key."""
    headers = {"Idempotency-Key": key} if key else {}
    return httpx.post(f"{address}/generate", json=dict(body), headers=headers, timeout=120)


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of the processes that still run, and are not merely unburied."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _session_of(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return 0
