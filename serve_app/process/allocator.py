"""glibc's allocator: in most processes large blocks go back to the system when they are freed.

By itself it keeps what was freed: blocks as large as one that was freed before come from heaps
instead of pages of their own, each thread may have a heap, and a heap shrinks only at its end.
Fresh pages cost time, though: some 0.8 ms for 2 MB. An ingress copies a picture of that size four
times, so there only blocks of more than a picture are large: the bodies of requests. A replica with
networks needs blocks of the same sizes again at the next step, and fresh pages for them would take
half as long again as its work on a CPU. See mallopt(3) and malloc_trim(3). What the operator has
set stands. With another C library nothing here does anything.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

_TUNABLES = "GLIBC_TUNABLES"  # where malloc's parameters may stand too, by other names
_LARGE = 2**18  # bytes of a block with pages of its own, which go back when it is freed
_LARGER = 2**22  # likewise in an ingress: more than a picture of 1024 x 1024 in base64
_ARENAS = 2


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter: its variable, its number in malloc.h, and its value by kind of process."""

    variable: str
    number: int
    value: int
    ingress: int
    replica: int | None = None  # of networks; None: whatever the process was given


_PARAMETERS = (  # those of a replica are the greatest that glibc chooses by itself
    _Parameter("MALLOC_ARENA_MAX", -8, _ARENAS, _ARENAS),
    _Parameter("MALLOC_MMAP_THRESHOLD_", -3, _LARGE, _LARGER, 2**25),
    _Parameter("MALLOC_TRIM_THRESHOLD_", -1, _LARGE, 4 * _LARGER, 2**26),
)


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that make processes to come give large blocks back.

    Those that the operator has set are left out.
    """
    return {p.variable: str(p.value) for p in _PARAMETERS if not _is_set(p, environ)}


def give_back_large_blocks() -> None:
    """Give large blocks of an ingress pages of their own, and let its threads share heaps."""
    _set({p: p.ingress for p in _PARAMETERS})


def keep_large_blocks() -> None:
    """Let a replica of networks keep large blocks that are freed."""
    _set({p: p.replica for p in _PARAMETERS if p.replica is not None})


def _set(values: Mapping[_Parameter, int]) -> None:
    """Set parameters of this process, whatever `environment` has given it."""
    environ = dict(os.environ)
    for name, given in environment({}).items():
        if environ.get(name) == given:
            del environ[name]
    if library := _library():
        for parameter, value in values.items():
            if not _is_set(parameter, environ):
                library.mallopt(parameter.number, value)


def trim() -> None:
    """Give back the free pages of all heaps. It takes milliseconds."""
    if library := _library():
        library.malloc_trim(0)


def _is_set(parameter: _Parameter, environ: Mapping[str, str]) -> bool:
    return parameter.variable in environ or "glibc.malloc." in environ.get(_TUNABLES, "")


@cache
def _library() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
