"""The file by which `aura up` hands secrets to its Ray: an environment is read by too many.

Ray gives its environment to all of its processes, and shows it on its dashboard; whatever they
start inherits it. The file is for its owner alone, and is deleted when the service ends. `up` has a
lock on it for as long as it lives, so that the next one knows the file of one that was killed.
"""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.core.errors import SettingsError

VARIABLE = "AURA_SECRET_FILE"  # names the file
_PREFIX, _SUFFIX = "aura-secrets-", ".json"  # of its name


def take_secrets(
    environ: Mapping[str, str], is_secret: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return an environment without its secrets, and these. An empty value is none."""
    secrets = {name: value for name, value in environ.items() if value and is_secret(name)}
    return {name: value for name, value in environ.items() if name not in secrets}, secrets


@contextmanager
def secret_file(secrets: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """Keep secrets in a new file of the folder while the block runs; yield what names it.

    That is the variable for the environment, or nothing where there are no secrets. Files that
    killed processes of this user have left in the folder are deleted.
    """
    _delete_stale_files(folder)
    if not secrets:
        yield {}
        return
    descriptor, path = _locked_file(folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # closing it unlocks it
            json.dump(dict(secrets), file)
            file.flush()
            yield {VARIABLE: str(path)}
    finally:
        with suppress(OSError):
            path.unlink()


def read_secret_file(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of the file that the environment names, if it names one.

    Raises `SettingsError` if it can't be read; its text shows none of them.
    """
    path = environ.get(VARIABLE)
    if not path:
        return {}
    try:
        secrets = json.loads(_own_text(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise SettingsError(
            f"can't be read: {reason}",
            VARIABLE,
            subject=f"{VARIABLE}={path}",
            remedy="Start the service again with: aura up",
        ) from None
    return {str(name): str(value) for name, value in secrets.items()}


def _own_text(path: str) -> str:
    """Return the text of a file that its user alone can have written, and read.

    Raises `OSError` for any other: somebody who may write to the folder could give us settings.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, encoding="utf-8") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "it is not this user's alone", path)
        return file.read()


def delete_secret_file(environ: Mapping[str, str]) -> None:
    """Delete the file that the environment names, if there is one."""
    if path := environ.get(VARIABLE):
        with suppress(OSError):
            Path(path).unlink()


def _locked_file(folder: Path) -> tuple[int, Path]:
    """Return a new file that nobody else may read, open and locked, and its path."""
    while True:
        descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)  # with mode 0600
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another start took it for a stale one before it was locked


def _delete_stale_files(folder: Path) -> None:
    """Delete the files of this user that no living process has locked."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's, or one that was just deleted
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                if is_own and _lock(descriptor, wait=False):
                    path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file; return False if another process has it, or if the file system can't."""
    import fcntl  # absent on Windows, where settings must be readable

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
