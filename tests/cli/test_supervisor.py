"""What `aura up` decides while the service runs: when Ray is lost, when a stop takes too long."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.cli.console import LOST, OK
from serve_app.cli.runner_report import Kind, Report
from serve_app.cli.supervisor import Supervisor


class ScriptedRunner:
    """A runner without a process: each turn it reports what the script has next."""

    def __init__(
        self,
        *turns: tuple[float, list[Report]],
        ends_with: int | None = None,
        left: tuple[str, ...] = (),
    ) -> None:
        self.now = 0.0
        self.exit_code: int | None = None
        self.killed_at: float | None = None
        self.stops = 0
        self._turns = list(turns)
        self._ends_with = ends_with
        self._left = left

    def clock(self) -> float:
        return self.now

    def reports(self) -> Iterator[Report]:
        if self._turns:
            seconds, reports = self._turns.pop(0)
            self.now += seconds
            yield from reports
        elif self._ends_with is not None:
            self.exit_code = self._ends_with
        else:
            self.now += 1.0  # silence

    def stop(self) -> None:
        self.stops += 1

    def lost_process(self) -> str | None:
        return None

    def kill(self) -> None:
        self.killed_at = self.now
        self.exit_code = -9

    def end(self) -> tuple[str, ...]:
        assert self.exit_code is not None
        return self._left


CONNECTED = Report(Kind.CONNECTED, "/nowhere")
READY = [CONNECTED, Report(Kind.READY)]
BEAT = Report(Kind.BEAT)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Put the handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def supervise(runner: ScriptedRunner) -> Supervisor:
    return Supervisor(
        runner,
        Path("/nowhere.log"),
        lambda logs: None,
        runner.clock,
        sleep=lambda seconds: None,
    )


def run(runner: ScriptedRunner, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code, and the lines for people but the last, which names the logs."""
    code = supervise(runner).run()
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.startswith("logs: ")
    return code, "\n".join(lines)


def test_silence_of_ray_ends_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    runner = ScriptedRunner((0, READY), (1, [BEAT]))
    code, shown = run(runner, capsys)
    assert (code, runner.killed_at) == (1, 22.0)
    assert shown.startswith("error Ray is lost (it has not answered for 20 s), so the service")


def test_a_pause_of_the_whole_container_is_no_silence(capsys: pytest.CaptureFixture[str]) -> None:
    runner = ScriptedRunner((0, READY), (3600, []), (1, [BEAT]), ends_with=0)
    assert run(runner, capsys)[0] == 1  # it ended unasked
    assert runner.killed_at is None


def test_a_reported_loss_ends_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    runner = ScriptedRunner((0, READY), (1, [Report(Kind.LOST, "its node has died")]))
    code, shown = run(runner, capsys)
    assert (code, runner.killed_at) == (1, 1.0)
    assert shown.startswith("error Ray is lost (its node has died)")


@pytest.mark.parametrize(
    ("ends_with", "sentence"),
    [
        (-9, "error the process that runs Ray ended by signal 9"),
        (3, "error the process that runs Ray ended with code 3"),
    ],
)
def test_an_end_without_a_signal_to_stop_is_an_error(
    capsys: pytest.CaptureFixture[str], ends_with: int, sentence: str
) -> None:
    assert run(ScriptedRunner((0, READY), ends_with=ends_with), capsys) == (1, sentence)


def test_an_error_of_the_start_is_shown_with_its_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = Report(Kind.FAILED, "is wrong", subject="X=1", remedy="Set X=2", exit_code=2)
    runner = ScriptedRunner((0, [CONNECTED, failed, Report(Kind.STOPPING)]), ends_with=2)
    assert run(runner, capsys) == (2, "error X=1 is wrong. Set X=2")


@pytest.mark.parametrize(
    ("turns", "lines"),
    [
        (READY, ()),  # it ended unasked, which the processes that are left explain
        ([CONNECTED, Report(Kind.FAILED, "is wrong", exit_code=2)], ("error is wrong",)),
    ],
)
def test_processes_that_no_signal_ends_are_named_and_are_a_failure(
    capsys: pytest.CaptureFixture[str], turns: list[Report], lines: tuple[str, ...]
) -> None:
    left = ("41 (raylet)", "43 (ray::Replica)")
    code, shown = run(ScriptedRunner((0, turns), ends_with=0, left=left), capsys)
    assert code != 0
    *before, last = shown.splitlines()
    assert tuple(before) == lines
    assert last.startswith("error process 41 (raylet), 43 (ray::Replica) can't be killed, and keep")


def test_a_stop_that_leaves_a_process_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = Interrupted((0, READY), at=(1, 30), left=("41 (raylet)",))
    code, shown = run(stopped, capsys)
    assert code == 1
    assert shown.startswith("error process 41 (raylet) can't be killed")


class Interrupted(ScriptedRunner):
    """A runner that does not end by itself; some turns are interrupted by a signal."""

    def __init__(
        self,
        *turns: tuple[float, list[Report]],
        at: tuple[float, ...],
        ends_with: int | None = None,
        left: tuple[str, ...] = (),
    ) -> None:
        super().__init__(*turns, ends_with=ends_with, left=left)
        self._at = list(at)

    def reports(self) -> Iterator[Report]:
        yield from super().reports()
        if self._at and self.now >= self._at[0]:
            self._at.pop(0)
            signal.raise_signal(signal.SIGINT)
        if not self._turns:
            yield BEAT


@pytest.mark.parametrize(
    ("runner", "killed_at"),
    [
        (Interrupted((0, []), at=(1,)), 7.0),  # while Ray starts
        (Interrupted((0, [CONNECTED]), at=(1,)), 7.0),  # while the models load
    ],
)
def test_a_stop_that_should_be_quick_is_enforced(
    capsys: pytest.CaptureFixture[str], runner: Interrupted, killed_at: float
) -> None:
    assert run(runner, capsys) == (0, "stopped")
    assert runner.killed_at == killed_at
    assert runner.stops > 0


def test_a_second_signal_is_enforced_and_what_is_not_known_to_be_finished_may_be_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runner = Interrupted((0, READY), at=(1, 30))
    code, shown = run(runner, capsys)
    assert code == LOST
    assert shown.splitlines()[0].startswith("unknown what became of the accepted requests")
    assert runner.killed_at == 46.0


@pytest.mark.parametrize(
    ("text", "code", "shown"),
    [
        ("", OK, "stopped"),
        ("2 requests in /spool", OK, "2 requests in /spool\nstopped"),
        ("1 request lost", LOST, "1 request lost\nstopped"),
    ],
)
def test_the_exit_code_says_whether_an_accepted_request_was_lost(
    capsys: pytest.CaptureFixture[str], text: str, code: int, shown: str
) -> None:
    drained = Report(Kind.DRAINED, text, exit_code=code)
    turns = ((0.0, READY), (2.0, [BEAT]), (1.0, [drained, Report(Kind.STOPPING)]))
    assert run(Interrupted(*turns, at=(1,), ends_with=code), capsys) == (code, shown)


@pytest.mark.parametrize(("beat_at", "killed_at"), [(8, 70.0), (1, 15.0)])
def test_a_stop_has_a_minute_if_ray_answers_and_else_seconds(
    capsys: pytest.CaptureFixture[str], beat_at: float, killed_at: float
) -> None:
    """Stopping begins at 9 s."""
    drained = [Report(Kind.DRAINED, exit_code=OK)]
    turns = ((0.0, READY), (beat_at, [BEAT]), (9.0 - beat_at, [*drained, Report(Kind.STOPPING)]))
    runner = Interrupted(*turns, at=(1,))
    assert run(runner, capsys) == (OK, "stopped")
    assert runner.killed_at == killed_at


def test_lines_of_the_log_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    runner = ScriptedRunner((0, [*READY, Report(Kind.LINES, "one\ntwo")]), ends_with=0)
    supervise(runner).run()
    assert capsys.readouterr().out == "one\ntwo\n"
