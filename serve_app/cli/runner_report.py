"""What the process that runs Ray reports to `aura up`: JSON lines over a pipe.

`up` alone writes to the terminal, so nothing that Ray prints can get there.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of reports, in the order in which a start and a stop send them."""

    CONNECTED = "connected"  # to Ray; `text` is the folder of its logs
    LOADING = "loading"  # the models, which fit on the cluster or wait for nodes
    BEAT = "beat"  # Ray has answered a call; again and again
    WAITING = "waiting"  # `text` says for what the models wait
    READY = "ready"
    LINES = "lines"  # that replicas have logged, as `text`
    DRAINING = "draining"
    DRAINED = "drained"  # `text` says what is not finished, and the code what that means
    NOTE = "note"  # `text` is for the terminal
    FAILED = "failed"  # `subject`, `text` and `remedy` are the fields of an error
    LOST = "lost"  # Ray has ended; `text` says what of it
    STOPPING = "stopping"  # Serve and Ray are being stopped


@dataclass(frozen=True, slots=True)
class Report:
    """One report."""

    kind: Kind
    text: str = ""
    subject: str = ""
    remedy: str = ""
    exit_code: int = 0


class ReportWriter:
    """The end of the pipe in the process that runs Ray; any thread may send."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # Ray's processes would keep the pipe open
        self._fd = fd
        self._lock = threading.Lock()

    def send(
        self, kind: Kind, text: str = "", *, subject: str = "", remedy: str = "", code: int = 0
    ) -> None:
        """Send a report; do nothing if `up` is gone."""
        report = asdict(Report(kind, text, subject, remedy, code))
        line = memoryview(json.dumps(report).encode() + b"\n")
        with self._lock, suppress(OSError):
            while line:
                line = line[os.write(self._fd, line) :]


class ReportReader:
    """The end of the pipe in `up`."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._rest = b""

    def read(self) -> Iterator[Report]:
        """Yield the reports that have arrived."""
        with suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    fields = json.loads(line)
                    yield Report(**fields | {"kind": Kind(fields["kind"])})
