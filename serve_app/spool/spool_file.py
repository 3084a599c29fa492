"""`SpoolFile`: the file of one spooled job, with the lock of the process that works at the job.

The lock is `flock`, which the system gives up when the process ends, however it ends. On a file
system without locks only the ledger says who works at a job.
"""

import fcntl
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("aura.spool")


@dataclass(slots=True, eq=False)
class SpoolFile:
    """A file that this process alone works with, until it deletes or releases it.

    `progress` is that of the job in it.
    """

    path: Path
    descriptor: int | None  # which has the lock
    progress: object

    @property
    def is_in_place(self) -> bool:
        """Whether this is the file that whoever comes next would find."""
        return self.descriptor is not None and is_at(self.path, self.descriptor)

    def delete(self) -> None:
        """Delete the file, as the job has ended; not one that was written in its place."""
        with suppress(OSError):
            if self.is_in_place:
                self.path.unlink()
        self.release()

    def release(self) -> None:
        """Leave the file to whoever comes next."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def lock(path: Path, descriptor: int) -> bool:
    """Lock an open file, and return whether no other process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        logger.warning("%s can't be locked (%s)", path, error.strerror)
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one that has the path now."""
    with suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
