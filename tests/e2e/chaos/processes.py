"""`Processes`: those of one service, for tests to kill, stop and measure.

Only descendants of a process that the test started are found.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.support.waiting import until

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one application, below the process `root`."""

    app: str
    root: int = 0  # 0: this process

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the replicas of a deployment, the oldest first."""
        return self._find(f"ray::ServeReplica:{self.app}:{deployment}")

    def proxy(self) -> psutil.Process:
        """Return Serve's HTTP proxy."""
        return self._oldest("ray::ProxyActor")

    def controller(self) -> psutil.Process:
        """Return Serve's controller."""
        return self._oldest("ray::ServeController")

    def ingress(self) -> psutil.Process:
        """Return the oldest ingress replica."""
        return self.replicas("Ingress")[0]

    def ledger(self) -> psutil.Process:
        """Return the ledger."""
        return self._oldest(f"ray::ServeReplica:{self.app}:Ledger")

    def _oldest(self, title: str) -> psutil.Process:
        return until(lambda: self._find(title) or None)[0]

    def _find(self, title: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.root or None).children(recursive=True):
            with suppress(psutil.Error):
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if not is_dead and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))


def kill(process: psutil.Process) -> None:
    """End a process with SIGKILL, and return when it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    with suppress(psutil.Error):
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stop a process with SIGSTOP, and let it go on afterwards."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def resident(process: psutil.Process) -> float:
    """Return the resident memory of a process in MiB."""
    size: int = process.memory_info().rss
    return size / MIB
