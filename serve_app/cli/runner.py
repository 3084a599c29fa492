"""The process that runs Ray, and every process of its session.

The session is how they are found, whatever became of their parents: Ray's raylet, its workers and
the replicas are started by each other, and when one is killed the others stay behind. No Ray.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from serve_app.cli.runner_report import Report, ReportReader

_SYSTEM = ("raylet", "gcs_server")  # the processes that Ray can't do without
_END_SECONDS = 3.0  # in which processes that were told to end should be gone
_POLL_SECONDS = 0.1


class Runner:
    """A process in a session of its own, with a pipe for its reports and a file for its output."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        receiving, sending = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve_app", *arguments, "--report-fd", str(sending)],
                stdin=subprocess.PIPE,  # closes when this process dies, however it dies
                stdout=output,
                stderr=output,
                pass_fds=(sending,),
                start_new_session=True,
                env=environ,
            )
        os.close(sending)
        self._reader = ReportReader(receiving)
        self._system: dict[psutil.Process, str] = {}  # those of Ray that were seen, and their names

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs, negative if a signal killed it."""
        return self._process.poll()

    def reports(self) -> Iterator[Report]:
        """Yield the reports that have arrived."""
        return self._reader.read()

    def stop(self) -> None:
        """Send SIGTERM to the process alone."""
        self._process.send_signal(signal.SIGTERM)

    def lost_process(self) -> str | None:
        """Return the name of a process that Ray can't do without and that has ended, if any."""
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                if child not in self._system and (name := child.name()) in _SYSTEM:
                    self._system[child] = name
        return next((name for child, name in self._system.items() if not _runs(child)), None)

    def end(self) -> None:
        """Kill what is left of the session, and return when all of it is gone."""
        deadline = time.monotonic() + _END_SECONDS
        while self._session() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        while left := self._session():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            self._process.poll()  # or else it stays as a zombie
            time.sleep(_POLL_SECONDS)
        self._process.wait()

    def kill(self) -> None:
        """Kill the whole session at once."""
        for process in self._session():
            with suppress(psutil.Error):
                process.kill()

    def _session(self) -> list[psutil.Process]:
        """Return the processes of the session that run, this one's child among them."""
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self._process.pid and _runs(process):
                    found.append(process)
        return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
