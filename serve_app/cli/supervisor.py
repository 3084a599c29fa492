"""`Supervisor`: what `aura up` does while the service runs: it shows, waits, and ends it.

It calls no function of Ray, each of which may block for ever once Ray is broken.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.markup import escape
from rich.status import Status

from serve_app.cli.console import FAILED, LOST, OK, console, print_error
from serve_app.cli.runner_report import Kind, Report
from serve_app.core.errors import OperatorError

_POLL_SECONDS = 0.2
_CHECK_SECONDS = 1.0  # between two looks at Ray's processes
_SILENCE_SECONDS = 20.0  # without an answer of Ray, after which it counts as lost
_BEAT_DUE_SECONDS = 6.0  # without one at the end of a drain, Ray will not stop in order
_PAUSE_SECONDS = 10.0  # between two turns of the loop, of which there are five a second
_LOAD_SECONDS = 5.0  # that a stop may take while the models load
_FORCED_SECONDS = 15.0  # that a stop may take after the second signal
_STOP_SECONDS = 60.0  # that Serve and Ray may take to stop after the drain


class SupervisedRunner(Protocol):
    """The process that runs Ray, with its session; see `Runner`."""

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs, negative if a signal killed it."""

    def reports(self) -> Iterator[Report]:
        """Yield the reports that have arrived."""

    def stop(self) -> None:
        """Send SIGTERM to the process alone."""

    def lost_process(self) -> str | None:
        """Return the name of a process that Ray can't do without and that has ended, if any."""

    def kill(self) -> None:
        """Kill the whole session at once."""

    def end(self) -> tuple[str, ...]:
        """End what is left of the session; return the processes that no signal ends."""


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
        runner: SupervisedRunner,
        log: Path,
        show_summary: Callable[[Path], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runner = runner
        self._log = log  # what the process that runs Ray prints
        self._show_summary = show_summary
        self._clock = clock
        self._sleep = sleep
        self._phase = Phase.STARTING
        self._logs: Path | None = None  # the folder of Ray's logs
        self._last_beat: float | None = None
        self._deadline: float | None = None  # by which the stop must have ended
        self._next_check = 0.0
        self._last_turn = clock()
        self._signals = 0
        self._error: int | None = None  # the exit code of an error that was shown
        self._was_ready = False
        self._drained: int | None = None  # the exit code of a drain that has ended
        self._lost = ""  # what the runner has reported of the loss of Ray
        self._status: Status | None = None

    def run(self) -> int:
        """Return the exit code, when no process of the service is left that can be ended."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        try:
            while self._runner.exit_code is None and self._continue():
                self._sleep(_POLL_SECONDS)
        except BaseException:
            self._runner.kill()
            raise
        self._take_reports()
        left = self._runner.end()
        self._show_status(None)
        return self._result(left)

    def _continue(self) -> bool:
        """Return whether to wait on; if not, the session has been killed."""
        self._take_reports()
        now = self._clock()
        pause = now - self._last_turn
        if pause > _PAUSE_SECONDS and self._last_beat is not None:
            self._last_beat += pause  # nothing ran, this process neither: a paused container
        self._last_turn = now
        problem = self._problem(now)
        if problem is not None:
            self._fail(problem)
        if problem is not None or (self._deadline is not None and now > self._deadline):
            self._runner.kill()
            return False
        return True

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
                self._was_ready = True
                self._show_status(None)
                self._show_summary(self._logs or self._log)
            case Kind.LINES:
                with suppress(OSError):  # nobody reads standard output any more
                    print(report.text, flush=True)
            case Kind.DRAINING:
                console.print("draining: accepted images are finished, nothing new is accepted")
            case Kind.DRAINED:
                self._drained = report.exit_code
                if report.text:
                    console.print(escape(report.text), soft_wrap=True)
            case Kind.NOTE:
                console.print(escape(report.text), soft_wrap=True)
            case Kind.FAILED:
                self._show_status(None)
                error = OperatorError(report.text, subject=report.subject, remedy=report.remedy)
                self._fail(error, report.exit_code)
            case Kind.LOST:
                self._lost = report.text
            case Kind.STOPPING:
                self._phase = Phase.STOPPING
                answers = self._error is None and not self._is_silent(_BEAT_DUE_SECONDS)
                self._set_deadline(_STOP_SECONDS if answers else _LOAD_SECONDS)

    def _problem(self, now: float) -> OperatorError | None:
        """Return that Ray is lost: a process of it has ended, or it answers no call any more."""
        if self._phase is Phase.STOPPING:
            return None
        if self._lost:
            return _lost(self._lost)
        if self._is_silent(_SILENCE_SECONDS):
            return _lost(f"it has not answered for {_SILENCE_SECONDS:.0f} s")
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            if name := self._runner.lost_process():
                return _lost(f"its {name} has ended")
        return None

    def _is_silent(self, seconds: float) -> bool:
        return self._last_beat is not None and self._clock() - self._last_beat > seconds

    def _fail(self, error: OperatorError, code: int = FAILED) -> None:
        self._show_status(None)
        if self._error is None:
            print_error(error)
            self._error = code

    def _result(self, left: tuple[str, ...]) -> int:
        code = self._runner.exit_code
        if left:
            print_error(_unkillable(left))
            self._error = FAILED if self._error is None else self._error
        elif self._error is None and not self._signals:
            how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
            self._fail(OperatorError(f"the process that runs Ray ended {how}"))
        if self._error is None:
            self._error = self._loss()
            console.print("stopped")
        console.print(f"[dim]logs: {escape(str(self._logs or self._log))}[/]", soft_wrap=True)
        return self._error

    def _loss(self) -> int:
        """Return the exit code of a stop, by what became of the requests that were accepted."""
        if not self._was_ready:
            return OK
        if self._drained is None:
            console.print("unknown what became of the accepted requests: the stop took too long")
            return LOST
        return self._drained

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


def _unkillable(processes: Sequence[str]) -> OperatorError:
    return OperatorError(
        "can't be killed, and keeps its memory and its GPU: the kernel waits for a device or a "
        "file system that does not respond",
        subject=f"process {', '.join(processes)}",
        remedy="Mend that, or restart the machine",
    )


def _moved(log: Path, folder: Path) -> Path:
    """Move a log file to the others; leave it where it is if that can't be done."""
    try:
        return log.rename(folder / "aura-up.log")
    except OSError:
        return log
