"""The process that runs Ray, and every process of its session.

The session is how they are found, whatever became of their parents: Ray's raylet, its workers and
the replicas are started by each other, and when one is killed the others stay behind. No Ray.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from serve_app.cli.runner_report import Report, ReportReader
from serve_app.cli.session import end_session, kill_all, processes_of, runs

_SYSTEM = ("raylet", "gcs_server")  # the processes that Ray can't do without


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
        return next((name for child, name in self._system.items() if not runs(child)), None)

    def end(self) -> tuple[str, ...]:
        """End what is left of the session; return the processes that no signal ends."""
        left = end_session(lambda: processes_of(self._process.pid))
        self._process.poll()  # or else it stays as a zombie
        if self._process.stdin:
            self._process.stdin.close()
        return left

    def kill(self) -> None:
        """Kill the whole session at once."""
        kill_all(processes_of(self._process.pid))
