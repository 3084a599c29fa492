"""Work in a process of its own, one at a time, once there is memory for it."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import psutil

from serve_app.core.errors import OperatorError

T = TypeVar("T")


class NotMeasured(OperatorError):
    """A part of a benchmark that can't run on this machine; the others can."""

    code = "NOT_MEASURED"


def run_alone(work: Callable[..., T], *arguments: object, needed: float) -> T:
    """Return what `work` returns in a new process, which needs so many bytes of memory.

    Raises `NotMeasured` if they are not free, or if the process is killed.
    """
    free = psutil.virtual_memory().available
    if free < needed:
        gib = 2**30
        raise NotMeasured(f"needs {needed / gib:.1f} GiB of memory, {free / gib:.1f} are free")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise NotMeasured("its process was killed, as a system does when memory ends") from None
