"""glibc's allocator, told to give the memory of large bodies back to the system.

By itself it keeps what was freed: blocks as large as one that was freed before come from heaps
instead of pages of their own, each thread may have a heap, and a heap shrinks only at its end.
See mallopt(3) and malloc_trim(3). Elsewhere these functions do nothing.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # names of malloc.h
_LARGE = 2**18  # bytes of a block with pages of its own, which go back when it is freed
_ARENAS = 2


@cache
def _library() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None


def give_back_large_blocks() -> None:
    """Give large blocks of this process pages of their own, and let its threads share heaps."""
    if library := _library():
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, _LARGE)
        library.mallopt(_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give back the free pages of all heaps. It takes milliseconds."""
    if library := _library():
        library.malloc_trim(0)
