"""Writes to the ledger are run in order, and given up together when it stays away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from serve_app.core.errors import LedgerAway, LedgerBroken, LedgerFault
from serve_app.ingress.ledger_outbox import LedgerOutbox
from tests.support.waiting import until_async

Write = Callable[[], Awaitable[None]]


class Book:
    """Keeps the names of writes that reached it; each waits until `opened`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.opened = asyncio.Event()
        self.begun = asyncio.Event()

    def write(self, name: str, error: Exception | None = None) -> Write:
        async def run() -> None:
            self.begun.set()
            await self.opened.wait()
            if error is not None:
                raise error
            self.names.append(name)

        return run


async def test_writes_of_all_jobs_are_run_in_their_order() -> None:
    book, outbox = Book(), LedgerOutbox()
    for name in ("a1", "b1", "a2", "b2"):
        outbox.put(name[0], book.write(name))
    book.opened.set()
    await outbox.flush()
    assert book.names == ["a1", "b1", "a2", "b2"]


async def test_a_job_s_writes_can_be_waited_for_but_not_for_ever() -> None:
    book, outbox = Book(), LedgerOutbox()
    outbox.put("a", book.write("a1"))
    outbox.put("b", book.write("b1"))
    await outbox.wait_for("another", timeout_s=60)
    await outbox.wait_for("a", timeout_s=0)
    assert book.names == []
    book.opened.set()
    await outbox.wait_for("a", timeout_s=60)
    assert book.names[:1] == ["a1"]


async def test_an_outbox_that_was_empty_goes_on() -> None:
    book, outbox = Book(), LedgerOutbox()
    book.opened.set()
    for name in ("a1", "a2"):
        outbox.put("a", book.write(name))
        await outbox.flush()
    assert book.names == ["a1", "a2"]


async def test_when_the_ledger_stays_away_what_waited_as_long_is_dropped_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book, outbox = Book(), LedgerOutbox()
    outbox.put("a", book.write("a1", LedgerAway("away")))
    outbox.put("b", book.write("b1"))
    await book.begun.wait()
    outbox.put("c", book.write("c1"))  # queued during the attempt
    with caplog.at_level(logging.WARNING, "aura.jobs"):
        book.opened.set()
        await outbox.flush()
    assert book.names == ["c1"]
    assert "missed 2 writes" in caplog.text


async def test_writes_wait_while_the_ledger_s_disk_is_at_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names: list[str] = []
    faults = [LedgerFault("full"), LedgerBroken("away")]

    async def write() -> None:
        if faults:
            raise faults.pop()
        names.append("a1")

    outbox = LedgerOutbox()
    outbox.put("a", write)
    await until_async(lambda: len(faults) < 2)
    await asyncio.wait_for(outbox.wait_for("a", 30), 1)  # nobody waits meanwhile
    await outbox.flush()
    assert names == ["a1"]
    assert not caplog.text


async def test_writes_are_dropped_when_the_fault_lasts_too_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book, outbox = Book(), LedgerOutbox(patience_s=0)
    book.opened.set()
    outbox.put("a", book.write("a1", LedgerFault("full")))
    with caplog.at_level(logging.WARNING, "aura.jobs"):
        await outbox.flush()
    assert "missed 1 writes" in caplog.text
    outbox.put("b", book.write("b1"))
    await outbox.flush()
    assert book.names == ["b1"]


async def test_a_write_that_fails_is_logged_and_the_next_one_is_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book, outbox = Book(), LedgerOutbox()
    book.opened.set()
    outbox.put("a", book.write("a1", KeyError("slip")))
    outbox.put("b", book.write("b1"))
    with caplog.at_level(logging.ERROR, "aura.jobs"):
        await outbox.flush()
    assert book.names == ["b1"]
    assert "slip" in caplog.text


async def test_the_images_in_the_queue_are_bounded() -> None:
    book, outbox = Book(), LedgerOutbox(max_bytes=10)
    outbox.put("a", book.write("a1"), size=7)
    assert outbox.has_capacity(3)
    assert not outbox.has_capacity(4)
    book.opened.set()
    await outbox.flush()
    assert outbox.has_capacity(10)
