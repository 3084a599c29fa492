"""`Supervisor`: what `aura up` does while the service runs: it shows, waits, and ends it.

It calls no function of Ray, each of which may block for ever once Ray is broken.
"""

import signal
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import FrameType

from rich.markup import escape
from rich.status import Status

from serve_app.cli.console import FAILED, OK, console, print_error
from serve_app.cli.runner import Runner
from serve_app.cli.runner_report import Kind, Report
from serve_app.core.errors import OperatorError

_POLL_SECONDS = 0.2
_CHECK_SECONDS = 1.0  # between two looks at Ray's processes
_SILENCE_SECONDS = 20.0  # without an answer of Ray, after which it counts as lost
_LOAD_SECONDS = 5.0  # that a stop may take while the models load
_FORCED_SECONDS = 15.0  # that a stop may take after the second signal
_STOP_SECONDS = 60.0  # that Serve and Ray may take to stop after the drain


class Phase(IntEnum):
    """How far the service has come."""

    STARTING = 1  # Ray starts
    LOADING = 2  # the models load
    READY = 3
    STOPPING = 4  # Serve and Ray stop, after the drain


class Supervisor:
    """Runs the service until it ends, or until Ray is lost."""

    def __init__(
        self,
        runner: Runner,
        log: Path,
        show_summary: Callable[[Path], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._log = log  # what the process that runs Ray prints
        self._show_summary = show_summary
        self._clock = clock
        self._phase = Phase.STARTING
        self._logs: Path | None = None  # the folder of Ray's logs
        self._last_beat: float | None = None
        self._deadline: float | None = None  # by which the stop must have ended
        self._next_check = 0.0
        self._signals = 0
        self._error: int | None = None  # the exit code of an error that was shown
        self._status: Status | None = None

    def run(self) -> int:
        """Return the exit code, when no process of the service is left."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        while self._runner.exit_code is None:
            self._take_reports()
            if problem := self._problem():
                self._fail(problem)
                self._runner.kill()
                break
            if self._deadline is not None and self._clock() > self._deadline:
                self._runner.kill()
                break
            time.sleep(_POLL_SECONDS)
        self._take_reports()
        self._runner.end()
        self._show_status(None)
        return self._result()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._runner.stop()
        if self._phase < Phase.READY:
            self._set_deadline(_LOAD_SECONDS)
        elif self._signals > 1:
            self._set_deadline(_FORCED_SECONDS)

    def _set_deadline(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        self._deadline = min(deadline, self._deadline or deadline)

    def _take_reports(self) -> None:
        for report in self._runner.reports():
            self._take(report)

    def _take(self, report: Report) -> None:
        match report.kind:
            case Kind.CONNECTED:
                self._phase = Phase.LOADING
                self._logs = Path(report.text)
                self._log = _moved(self._log, self._logs)
                self._last_beat = self._clock()
            case Kind.LOADING:
                self._show_status("loading the models")
            case Kind.BEAT:
                self._last_beat = self._clock()
            case Kind.WAITING:
                console.print(f"[yellow]waiting:[/] {escape(report.text)}", soft_wrap=True)
            case Kind.READY:
                self._phase = Phase.READY
                self._show_status(None)
                self._show_summary(self._logs or self._log)
            case Kind.LINES:
                print(report.text, flush=True)
            case Kind.DRAINING:
                console.print("draining: accepted images are finished, nothing new is accepted")
            case Kind.NOTE:
                console.print(escape(report.text), soft_wrap=True)
            case Kind.FAILED:
                self._show_status(None)
                error = OperatorError(report.text, subject=report.subject, remedy=report.remedy)
                self._fail(error, report.exit_code)
            case Kind.LOST:
                self._fail(_lost(report.text))
                self._runner.kill()
            case Kind.STOPPING:
                self._phase = Phase.STOPPING
                self._set_deadline(_STOP_SECONDS if self._error is None else _LOAD_SECONDS)

    def _problem(self) -> OperatorError | None:
        """Return that Ray is lost: a process of it has ended, or it answers no call any more."""
        if self._phase is Phase.STOPPING:
            return None
        if self._clock() < self._next_check:
            return None
        self._next_check = self._clock() + _CHECK_SECONDS
        if name := self._runner.lost_process():
            return _lost(f"its {name} has ended")
        if self._last_beat is not None and self._clock() - self._last_beat > _SILENCE_SECONDS:
            return _lost(f"it has not answered for {_SILENCE_SECONDS:.0f} s")
        return None

    def _fail(self, error: OperatorError, code: int = FAILED) -> None:
        self._show_status(None)
        if self._error is None:
            print_error(error)
            self._error = code

    def _result(self) -> int:
        code = self._runner.exit_code
        if self._error is None and not self._signals and code != OK:
            how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
            self._fail(OperatorError(f"the process that runs Ray ended {how}"))
        if self._error is None:
            console.print("stopped")
        console.print(f"[dim]logs: {escape(str(self._logs or self._log))}[/]", soft_wrap=True)
        return OK if self._error is None else self._error

    def _show_status(self, text: str | None) -> None:
        """Show what the service does now, in motion if this is a terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if text is not None and console.is_terminal:
            self._status = console.status(text)
            self._status.start()
        elif text is not None:
            console.print(text)


def _lost(how: str) -> OperatorError:
    return OperatorError(
        f"Ray is lost ({how}), so the service is ended",
        remedy="Start it again; under systemd or Docker that happens by itself",
    )


def _moved(log: Path, folder: Path) -> Path:
    """Move a log file to the others; leave it where it is if that can't be done."""
    try:
        return log.rename(folder / "aura-up.log")
    except OSError:
        return log
