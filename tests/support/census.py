"""A census of this process: what there is that a request may leave behind."""

import asyncio
import gc
import re
import threading
from collections import Counter
from collections.abc import Collection

import psutil

from serve_app.core.diffusion.sample import Sample
from serve_app.core.service.backlog import ImageInFlight
from serve_app.ingress.job_feed import JobFeed
from serve_app.ingress.job_run import JobRun
from serve_app.runtime.subscriptions import Subscription
from tests.support.waiting import until_async

_KEPT = (JobFeed, JobRun, ImageInFlight, Sample, Subscription, asyncio.Event)
_POOL = re.compile(r"(ledger|read|write|png)_\d")

Census = Counter[tuple[str, str]]  # how many there are of each kind and name


def take_census() -> Census:
    """Count threads, descriptors, the event loop's tasks and timers, and what jobs are made of.

    Without a collection first, rings of objects would count. Pools that grow up to a few threads
    are left out.
    """
    gc.collect()
    names = [("task", name) for name in _tasks()]
    threads = [thread.name for thread in threading.enumerate()]
    names += [("thread", name) for name in threads if not _POOL.fullmatch(name)]
    names += [
        ("object", type(found).__name__)
        for found in gc.get_objects()
        if issubclass(type(found), _KEPT)
    ]
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # private
    names += [("timer", "") for timer in timers if not timer.cancelled()]
    return Counter(names) + Counter({("descriptor", ""): psutil.Process().num_fds()})


async def census_at_rest(background: Collection[str]) -> Census:
    """Return a census once the loop has no tasks but this one and those in the background."""
    own = {task_name(asyncio.current_task())}
    return await until_async(
        lambda: take_census() if set(_tasks()) <= own | set(background) else None
    )


async def nothing_is_left_since(before: Census, timeout: float = 7) -> None:
    """Wait until there is what there was before; raise `AssertionError` with what is left."""
    found = before
    try:
        async with asyncio.timeout(timeout):
            while (found := take_census()) != before:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"left: {found - before}, gone: {before - found}") from None


def _tasks() -> list[str]:
    return [task_name(task) for task in asyncio.all_tasks()]


def task_name(task: "asyncio.Task[object] | None") -> str:
    """Return the name of the coroutine that a task runs."""
    return str(getattr(task and task.get_coro(), "__qualname__", ""))
