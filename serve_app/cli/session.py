"""The processes of a session, and how they are ended. No Ray."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import psutil

_END_SECONDS = 3.0  # in which processes that were told to end should be gone
_KILL_SECONDS = 5.0  # in which killed processes should be gone; one that waits in the kernel stays
_POLL_SECONDS = 0.1


class SessionProcess(Protocol):
    """A process of the session; see `psutil.Process`."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def name(self) -> str:
        """Return the name of its program."""

    def kill(self) -> None:
        """Send SIGKILL."""


def processes_of(session: int) -> list[psutil.Process]:
    """Return the processes of a session that run, its leader among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and runs(process):
                found.append(process)
    return found


def runs(process: psutil.Process) -> bool:
    """Return whether any thread of a process runs: its first may end before the others."""
    try:
        if not process.is_running():
            return False
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.Error:
        return False


def kill_all(processes: Sequence[SessionProcess]) -> None:
    """Send SIGKILL to processes, which may be gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def end_session(
    find: Callable[[], Sequence[SessionProcess]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Wait for processes that are ending, then kill what is left of them.

    `find` returns those that run. Return the process ids and names of those that no signal ends,
    such as one in a call to a driver or a file system that does not respond (state D).
    """
    deadline = clock() + _END_SECONDS
    while find() and clock() < deadline:
        sleep(_POLL_SECONDS)
    deadline = clock() + _KILL_SECONDS
    while (left := find()) and clock() < deadline:
        kill_all(left)
        sleep(_POLL_SECONDS)
    return tuple(map(_label, left))


def _label(process: SessionProcess) -> str:
    try:
        return f"{process.pid} ({process.name()})"
    except psutil.Error:
        return str(process.pid)
