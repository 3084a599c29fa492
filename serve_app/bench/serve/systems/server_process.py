"""`ServerProcess`: a system that is one Python program with a port, in a process of its own."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serve_app.bench.local_ray import free_port
from serve_app.bench.serve.systems.server_arguments import ServerArguments
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.systems.system import HttpClient, plain_call
from serve_app.core.errors import OperatorError

_START_TIMEOUT = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A program that gets its port and the setup's values as arguments.

    It answers `plain_call`, and GET /health with 200 once it is ready. `python` returns the
    interpreter of its environment, or raises `OperatorError`.
    """

    name: str
    note: str
    program: str  # its module
    setup: Setup
    python: Callable[[], Path] = lambda: Path(sys.executable)

    @contextmanager
    def start(self) -> Iterator[HttpClient]:
        """See `System`."""
        python, port, setup = self.python(), free_port(), self.setup
        loras = {name: str(file) for name, file in setup.loras.items()}
        arguments = ServerArguments(port, str(setup.checkpoint), setup.threads, setup.images, loras)
        log = (setup.folder / f"{self.program.rpartition('.')[2]}.log").open("w+", encoding="utf-8")
        process = subprocess.Popen(
            [str(python), "-m", self.program, *arguments.to_list()],
            env={**os.environ, "OMP_NUM_THREADS": str(setup.threads)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # of its own, with its workers; a session would have other CPU shares
        )
        try:
            self._wait(process, port, Path(log.name))
            yield HttpClient(port, lambda request, _: plain_call(request))
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.close()

    def _wait(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        end = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < end and process.poll() is None:
            if is_ready(port):
                return
            time.sleep(0.1)
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        raise OperatorError(f"did not start: {lines[-1] if lines else ''}", subject=self.name)


def is_ready(port: int) -> bool:
    """Return whether a server at this port says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
