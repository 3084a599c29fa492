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


async def test_a_write_lets_the_response_go_first_unless_somebody_waits_for_it() -> None:
    book, outbox = Book(), LedgerOutbox(linger_s=60)
    book.opened.set()
    outbox.put("a", book.write("a1"))
    outbox.put("b", book.write("b1"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not book.begun.is_set()
    await outbox.wait_for("a", timeout_s=60)
    assert book.names == ["a1"]
    await outbox.flush()
    assert book.names == ["a1", "b1"]


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


class Disk:
    """A ledger's disk with a clock: writes raise `fault`, or else are kept in `names`."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault
        self.now = 0.0
        self.names: list[str] = []
        self.tries: list[str] = []

    def write(self, name: str, *, fits: bool = False) -> Write:
        """Return a write; one that fits is refused by no fault of its neighbours."""

        async def run() -> None:
            self.tries.append(name)
            if self.fault is not None and not fits:
                raise self.fault
            self.names.append(name)

        return run


@pytest.mark.parametrize("fault", [LedgerFault("full"), LedgerBroken("away")])
async def test_only_writes_that_waited_for_too_long_are_dropped(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(fault)
    outbox = LedgerOutbox(patience_s=60, retry_s=0.02, clock=lambda: disk.now)
    outbox.put("a", disk.write("a1"))
    await until_async(lambda: disk.tries == ["a1"])
    disk.now = 59.9
    outbox.put("b", disk.write("b1"))
    disk.now = 60.0
    await until_async(lambda: outbox.jobs == {"b"})
    outbox.put("c", disk.write("c1"))  # meets the fault when it has lasted for long
    await until_async(lambda: disk.tries.count("b1") + disk.tries.count("c1") > 2)
    disk.fault = None
    await outbox.flush()
    assert sorted(disk.names) == ["b1", "c1"]
    assert "missed 1 writes" in caplog.text


async def test_a_write_that_is_refused_for_its_own_sake_does_not_hold_up_other_jobs() -> None:
    disk = Disk(LedgerFault("full"))
    outbox = LedgerOutbox(retry_s=0.02, clock=lambda: disk.now)
    outbox.put("large", disk.write("large 1"), size=7)
    outbox.put("large", disk.write("large 2", fits=True))
    outbox.put("small", disk.write("small 1", fits=True))
    outbox.put("small", disk.write("small 2", fits=True))
    await outbox.wait_for("small", 30)
    assert disk.names == ["small 1", "small 2"]
    await asyncio.wait_for(outbox.wait_for("large", 30), 1)  # nobody waits for what is refused
    disk.fault = None
    await outbox.flush()
    assert disk.names == ["small 1", "small 2", "large 1", "large 2"]


async def test_a_job_is_waited_for_until_its_own_write_is_refused() -> None:
    disk = Disk(LedgerFault("full"))
    outbox = LedgerOutbox(retry_s=60)
    outbox.put("large", disk.write("large 1"), size=7)
    await asyncio.wait_for(outbox.wait_for("large", 60), 1)
    assert disk.tries == ["large 1"]
    outbox.put("small", disk.write("small 1", fits=True))
    await asyncio.wait_for(outbox.wait_for("small", 60), 1)  # not until the next try of the other
    assert disk.names == ["small 1"]
    disk.fault = None
    outbox.put("small", disk.write("small 2"))
    await asyncio.wait_for(outbox.flush(), 1)  # a success is followed by what was refused
    assert disk.names == ["small 1", "small 2", "large 1"]


async def test_no_other_write_is_tried_while_none_can_succeed() -> None:
    disk = Disk(LedgerBroken("away"))
    outbox = LedgerOutbox(retry_s=0.02, clock=lambda: disk.now)
    outbox.put("a", disk.write("a1"))
    outbox.put("b", disk.write("b1"))
    await until_async(lambda: len(disk.tries) == 2)
    assert disk.tries == ["a1", "a1"]
    disk.fault = None
    await outbox.flush()
    assert disk.names == ["a1", "b1"]


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
