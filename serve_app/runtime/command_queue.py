"""`CommandQueue`: what other threads ask of the engine's thread, in the order of their asking."""

from collections.abc import Callable
from queue import Empty, SimpleQueue


class CommandQueue:
    """Commands that any thread may put, and that one thread takes."""

    def __init__(self) -> None:
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def put(self, command: Callable[[], None]) -> None:
        """Add a command, to be run soon."""
        self._commands.put(command)

    def take(self, *, wait: bool) -> list[Callable[[], None]]:
        """Return all commands that there are; with `wait`, at least one."""
        commands = []
        try:
            commands.append(self._commands.get(block=wait))
            while True:
                commands.append(self._commands.get_nowait())
        except Empty:
            return commands
