"""The folders that the service and Ray write to, and what can be wrong with them before a start.

Ray itself would end with a stack trace. No Ray: `up` and `doctor` ask before it is imported.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve_app.core.errors import SettingsError
from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.spool.access import access_problem

_SESSION = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # its longest path
_MAX_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
_MIN_FREE = 256 << 20  # bytes; Ray's logs, and what does not fit into shared memory
_MIN_OBJECTS = 75 << 20  # bytes that Ray requires for its object store
_SHARED_MEMORY = Path("/dev/shm")
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def ray_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in which Ray makes its own, the folder `ray`."""
    default = "/tmp" if sys.platform in ("linux", "darwin") else tempfile.gettempdir()
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    return Path(next((environ[name] for name in names if name in environ), default))


def started_cluster(environ: Mapping[str, str] = os.environ) -> str:
    """Return the address that `ray start` wrote down on this machine, "" without one."""
    file = ray_folder(environ) / "ray" / "ray_current_cluster"
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def check_folders(
    ledger: LedgerPlace, environ: Mapping[str, str] = os.environ, *, spool: Path | None = None
) -> None:
    """Check that Ray, the ledger and the spool can write where they must.

    Raises `SettingsError`.
    """
    for problem in ray_problems(environ):
        raise problem
    file = ledger.path if isinstance(ledger, LedgerFile) else None
    if file and (ledger_problem := file_problem(file)):
        raise SettingsError(
            ledger_problem,
            "LEDGER_FILE",
            subject=f"LEDGER_FILE={file}",
            remedy="Set LEDGER_FILE to a file in a folder of your own",
        )
    if spool and (reason := spool_problem(spool)):
        raise SettingsError(
            reason,
            "DRAIN_SPOOL",
            subject=f"DRAIN_SPOOL={spool}",
            remedy="Set DRAIN_SPOOL to a folder of your own, which nobody else may read",
        )


def ray_problems(environ: Mapping[str, str] = os.environ) -> Iterator[SettingsError]:
    """Yield what keeps Ray from starting: its folder, shared memory, and the file of its token."""
    yield from _folder_problems(environ)
    yield from _token_problems(environ)


def _folder_problems(environ: Mapping[str, str]) -> Iterator[SettingsError]:
    folder = ray_folder(environ)
    names = [name for name in ("RAY_TMPDIR", "TMPDIR") if environ.get(name) == str(folder)]
    variable = next(iter(names), "RAY_TMPDIR")
    subject = f"{variable}={folder}"
    length, room = len(os.fsencode(folder)), _MAX_SOCKET - len(_SESSION) - 1
    if length > room:
        yield SettingsError(
            f"has {length} bytes, and the paths of Ray's sockets leave room for {room}",
            variable,
            subject=subject,
            remedy="Choose a shorter one: RAY_TMPDIR=/tmp aura up",
        )
        return
    if reason := write_problem(folder):
        yield SettingsError(
            f"can't be used for Ray's files: {reason}",
            variable,
            subject=subject,
            remedy="Choose another folder: RAY_TMPDIR=/var/tmp aura up",
        )
        return
    free = shutil.disk_usage(nearest_existing(folder)).free
    has_shared = _SHARED_MEMORY.is_dir()
    shared = shutil.disk_usage(_SHARED_MEMORY).free if has_shared else _MIN_OBJECTS
    if problem := space_problem(variable, folder, free, shared):
        yield problem


def space_problem(variable: str, folder: Path, free: int, shared: int) -> SettingsError | None:
    """Return that Ray has too little room, given the free bytes in its folder and in /dev/shm.

    Ray keeps in its folder what does not fit into shared memory.
    """
    if free < _MIN_FREE:
        return SettingsError(
            f"has {free >> 20} MiB free, and Ray needs {_MIN_FREE >> 20} MiB for its files",
            variable,
            subject=f"{variable}={folder}",
            remedy="Make room, or choose a folder on another disk: RAY_TMPDIR=/var/tmp aura up",
        )
    if shared < _MIN_OBJECTS and free < _MIN_FREE + _MIN_OBJECTS:
        return SettingsError(
            f"has {shared >> 20} MiB free, and Ray needs {_MIN_OBJECTS >> 20} MiB for what its "
            "processes share",
            subject=str(_SHARED_MEMORY),
            remedy="Delete files there; in Docker, start the container with --shm-size=1g",
        )
    return None


def _token_problems(environ: Mapping[str, str]) -> Iterator[SettingsError]:
    """Yield why Ray can't make the token that its own processes show each other."""
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    if any(environ.get(name) for name in _TOKEN_VARIABLES):
        return
    token = home(environ) / ".ray" / "auth_token"
    if os.access(token, os.R_OK) and token.is_file():
        return
    if problem := write_problem(token.parent):
        yield SettingsError(
            f"can't be used for Ray's token ({token}): {problem}",
            "HOME",
            subject=f"HOME={home(environ)}",
            remedy="Set HOME to a folder of your own, or give the token as RAY_AUTH_TOKEN",
        )


def default_ledger_file(port: int) -> Path:
    """Return the ledger of the service on a port, in the folder for a user's state."""
    state = Path(os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state")
    return state / "aura-serve" / f"ledger-{port}.sqlite"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the home folder: HOME, or where it is unset that of the user."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path.home()
    except RuntimeError:  # a container's user that has no entry in /etc/passwd
        return Path("/")


def nearest_existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    paths = (folder, *folder.absolute().parents)
    return next(path for path in paths if os.access(path, os.F_OK))


def file_problem(file: Path) -> str | None:
    """Return why a file can't be made or written, in words; None if it can."""
    if problem := _lookup_problem(file):
        return problem
    if file.is_dir():
        return "is a folder, and must be a file"
    existing = nearest_existing(file.parent)
    if not existing.is_dir():
        return f"can't be created: {existing} is not a folder"
    problem = write_problem(existing)
    return problem and f"can't be written: {problem}"


def spool_problem(folder: Path) -> str | None:
    """Return why a folder, which need not exist yet, can't be the spool; None if it can."""
    if problem := _lookup_problem(folder):
        return problem
    if folder.exists():
        if not folder.is_dir():
            return "is not a folder"
        if problem := access_problem(folder.stat()):
            return problem
    problem = write_problem(folder)
    return problem and f"can't be written: {problem}"


def write_problem(folder: Path) -> str | None:
    """Return why no file can be made in a folder, which need not exist yet; None if one can.

    Nothing is left behind: it is tried with a file that has no name.
    """
    if problem := _lookup_problem(folder):
        return f"{folder} {problem}"
    existing = nearest_existing(folder)
    if not existing.is_dir():
        return f"{existing} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing} is not writable ({error.strerror})"


def _lookup_problem(path: Path) -> str | None:
    """Return why the system can't even say whether a path exists; None if it can."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"can't be looked up ({error.strerror})"
    return None
