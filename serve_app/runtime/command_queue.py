"""`CommandQueue`: what other threads ask of the engine's thread, in the order of their asking."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue


class CommandQueue:
    """Commands that any thread may put, and that one thread runs."""

    def __init__(self) -> None:
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def put(self, command: Callable[[], None]) -> None:
        """Add a command, to be run soon."""
        self._commands.put(command)

    def run(self, lock: AbstractContextManager[object], *, wait: bool) -> None:
        """Run all commands that there are, each under the lock; with `wait`, at least one."""
        try:
            command = self._commands.get(block=wait)
            while True:
                with lock:
                    command()
                command = self._commands.get_nowait()
        except Empty:
            pass
