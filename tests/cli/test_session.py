"""How the processes of a session are ended, and what is left when the kernel keeps one."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from serve_app.cli.runner import Runner
from serve_app.cli.session import SessionProcess, end_session, kill_all, processes_of
from tests.support.waiting import until

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=[600]).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


class InTheKernel:
    """A process in an uninterruptible call, which SIGKILL does not end."""

    pid = 4711

    def __init__(self) -> None:
        self.kills = 0

    def name(self) -> str:
        return "ray::Replica"

    def kill(self) -> None:
        self.kills += 1


class Vanished(InTheKernel):
    """A process that ends while it is looked at."""

    pid = 4712

    def name(self) -> str:
        raise psutil.NoSuchProcess(self.pid)

    def kill(self) -> None:
        raise psutil.NoSuchProcess(self.pid)


class Clock:
    """A clock that only a sleep advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def session_of(script: str) -> Iterator[int]:
    """Run a script in a session of its own; yield the session when the script says ready."""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def end(find: Sequence[SessionProcess] | int, clock: Clock) -> tuple[str, ...]:
    if isinstance(find, int):
        return end_session(lambda: processes_of(find), clock, clock.sleep)
    return end_session(lambda: find, clock, clock.sleep)


def test_a_process_that_no_signal_ends_is_named_after_a_few_seconds() -> None:
    clock, process = Clock(), InTheKernel()
    assert end([process], clock) == ("4711 (ray::Replica)",)
    assert process.kills > 1
    assert clock.now == pytest.approx(8, abs=0.5)  # 3 s to end by itself, 5 s after SIGKILL


def test_a_process_that_ends_meanwhile_does_no_harm() -> None:
    clock = Clock()
    assert end([Vanished()], clock) == ("4712",)
    assert end([], clock) == ()


@pytest.mark.parametrize("script", [STUBBORN, WITHOUT_ITS_FIRST_THREAD])
def test_what_runs_in_a_session_is_killed(script: str) -> None:
    with session_of(script) as session:
        if script is WITHOUT_ITS_FIRST_THREAD:
            leader = psutil.Process(session)
            until(lambda: leader.status() == psutil.STATUS_ZOMBIE)
        assert [process.pid for process in processes_of(session)] == [session]
        kill_all(processes_of(session))
        until(lambda: not processes_of(session))


def test_a_runner_that_has_ended_leaves_nothing(tmp_path: Path) -> None:
    runner = Runner(["no-such-command"], {"PATH": "/usr/bin"}, tmp_path / "log")
    assert runner.end() == ()
    assert runner.exit_code == 2
