"""`FileLock`: one service for each ledger file, also among containers that share a volume.

A lock of the system (flock) on a file beside the ledger's own, which SQLite locks in its own way:
on network file systems the two kinds of lock would meet. The system gives it up when the process
ends, however it ends. The file names its holder and stays. A symbolic link stands for the file that
it leads to; a file with a second name (a hard link) is refused: each would have its own lock.
"""

import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from serve_app.core.errors import LedgerInUse

logger = logging.getLogger("aura.ledger")

_POLL_S = 0.1


class FileLock:
    """The lock on a ledger's file; `service` names who wants it."""

    def __init__(self, ledger: Path, service: str = "") -> None:
        self._ledger = ledger
        self._file = lock_file(ledger)
        self._service = service
        self._descriptor: int | None = None

    def acquire(self, wait_s: float) -> None:
        """Take the lock, or wait for it, as a process that ends may have it for a moment.

        Raises `LedgerInUse` that names who has it, or for a file with a second name, and `OSError`
        if its file can't be made. A file system without such locks is warned about.
        """
        _check_names(self._ledger)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + wait_s
        try:
            while not _try_lock(descriptor, self._file):
                if time.monotonic() >= end:
                    raise in_use(self._ledger, read_holder(self._ledger))
                time.sleep(_POLL_S)
            _write_holder(descriptor, self._service)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_file(ledger: Path) -> Path:
    """Return the file whose lock stands for a ledger's file."""
    return Path(f"{real_path(ledger)}.lock")


def real_path(ledger: Path) -> Path:
    """Return the file that a path leads to, whether or not there is one yet."""
    return Path(os.path.realpath(ledger))


def check_unlocked(ledger: Path, service: str, wait_s: float) -> None:
    """Check that no other service has the lock; make nothing. Raises `LedgerInUse`."""
    _check_names(ledger)
    try:
        descriptor = os.open(lock_file(ledger), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody ever had it, or whoever opens the ledger says what is wrong
        return
    end = time.monotonic() + wait_s
    try:
        while not _try_lock(descriptor, lock_file(ledger)):
            holder = read_holder(ledger)
            if service and holder.get("service") == service:
                return
            if time.monotonic() >= end:
                raise in_use(ledger, holder)
            time.sleep(_POLL_S)
    finally:
        os.close(descriptor)


def read_holder(ledger: Path) -> dict[str, str]:
    """Return what the holder of the lock, or the last one, wrote about itself."""
    with suppress(OSError, ValueError):
        content = json.loads(lock_file(ledger).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {str(key): str(value) for key, value in content.items()}
    return {}


def in_use(ledger: Path, holder: dict[str, str]) -> LedgerInUse:
    """Return that another service has the ledger's file."""
    who = ""
    if "pid" in holder:
        who = f" (process {holder['pid']} on {holder.get('host')} since {holder.get('since')})"
    return LedgerInUse(
        f"is in use by another service{who}",
        subject=f"LEDGER_FILE={ledger}",
        remedy="Stop that service, or give this one another LEDGER_FILE",
    )


def _check_names(ledger: Path) -> None:
    try:
        names = ledger.stat().st_nlink
    except OSError:  # there is none yet, or whoever opens it says what is wrong
        return
    if names > 1:
        raise LedgerInUse(
            f"has {names} names (hard links), and by each of them another service could use it",
            subject=f"LEDGER_FILE={ledger}",
            remedy="Remove the other name, or put a copy in its place",
        )


def _try_lock(descriptor: int, file: Path) -> bool:
    import fcntl  # absent on Windows, where `doctor` must be able to import this module

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s can't be locked (%s): run one service only", file, error.strerror)
    return True


def _write_holder(descriptor: int, service: str) -> None:
    holder = {
        "service": service,
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    with suppress(OSError):  # a full disk: the lock is no less a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
