"""The events of a job, read as fast as they come, slowly, late, by several, or not at all."""

import asyncio

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobEvent,
    JobStarted,
)
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.job_feed import Cursor, JobFeed
from tests.support.census import take_census

STARTED = JobStarted("a")
MADE = ImageMade(1, b"png", 7)


def preview(number: int, step: int) -> ImagePreview:
    return ImagePreview(number, b"jpeg %d" % step)


async def test_a_quick_reader_gets_every_event_in_order() -> None:
    feed, read = JobFeed(), list[JobEvent]()
    arrived = asyncio.Semaphore(0)

    async def read_all() -> None:
        async for event in feed.read():
            read.append(event)
            arrived.release()

    reader = asyncio.create_task(read_all())
    events: list[JobEvent] = [STARTED, preview(0, 1), preview(0, 2), MADE]
    for event in events:
        feed.put(event)
        await arrived.acquire()
    feed.close()
    await reader
    assert read == events


async def test_a_slow_reader_gets_the_newest_event_of_each_type_and_image() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    reading = feed.read()
    assert await anext(reading) == STARTED
    for step in range(1000):
        feed.put(preview(0, step))
        feed.put(preview(1, step))
    assert await anext(reading) == preview(0, 999)
    feed.put(preview(1, 1000))
    feed.put(MADE)
    feed.close()
    assert [event async for event in reading] == [MADE]  # no preview of what is made


async def test_an_event_that_is_equal_to_the_one_before_is_no_news() -> None:
    feed = JobFeed()
    reading = feed.read()
    feed.put(preview(0, 1))
    assert await anext(reading) == preview(0, 1)
    feed.put(preview(0, 1))
    feed.put(MADE)
    assert await anext(reading) == MADE
    feed.put(MADE)
    feed.close()
    assert [event async for event in reading] == []


async def test_a_late_reader_begins_with_the_present_state() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    for step in range(3):
        feed.put(preview(0, step))
    feed.put(MADE)
    feed.close()
    for _ in range(2):
        assert [event async for event in feed.read()] == [STARTED, preview(0, 2), MADE]


async def test_a_feed_whose_readers_have_left_is_read_again() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    reading = feed.read(views=True)
    assert await anext(reading) == STARTED
    await reading.aclose()
    assert not feed.is_viewed
    feed.put(preview(0, 2))
    feed.close()
    feed.put(preview(0, 3))
    assert [event async for event in feed.read()] == [STARTED, preview(0, 2)]


class Maker:
    """What a feed tells whoever makes the job."""

    def __init__(self, feed: JobFeed) -> None:
        self.watched: list[bool] = []
        self.refreshed = 0
        self._feed = feed

    def refresh(self) -> None:
        self.refreshed += 1
        self._feed.put(ImageProgress(0, Outlook(Stage.BASE, 0, 4, 1, 1.0 / self.refreshed)))

    def connect(self) -> None:
        self._feed.connect(self.watched.append, self.refresh)


async def test_a_maker_knows_of_the_first_viewer_and_of_the_last() -> None:
    feed = JobFeed()
    maker = Maker(feed)
    maker.connect()
    feed.put(STARTED)
    async for _ in feed.read():  # reads, and does not watch
        break
    first, second = feed.read(views=True), feed.read(views=True)
    await anext(first)
    await anext(second)
    assert maker.watched == [True]
    await first.aclose()
    assert maker.watched == [True]
    await second.aclose()
    assert maker.watched == [True, False]


async def test_a_maker_that_comes_late_hears_of_who_watches_already() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    reading = feed.read(views=True)
    await anext(reading)
    maker = Maker(feed)
    maker.connect()
    assert maker.watched == [True]
    assert await anext(reading) == ImageProgress(0, Outlook(Stage.BASE, 0, 4, 1, 1.0))
    feed.close()
    await reading.aclose()
    assert maker.watched == [True]  # it has ended: nobody is to be told


async def test_a_viewer_who_waits_sees_what_changes_without_an_event() -> None:
    feed = JobFeed(refresh_s=0.01)
    maker = Maker(feed)
    maker.connect()
    reading = feed.read(views=True)
    found = [await anext(reading) for _ in range(3)]
    assert found == [ImageProgress(0, Outlook(Stage.BASE, 0, 4, 1, 1.0 / n)) for n in (1, 2, 3)]
    await reading.aclose()


async def test_a_poll_returns_what_is_new_and_where_it_ends() -> None:
    feed = JobFeed()
    feed.put(STARTED)
    first, events = await feed.poll(Cursor(), 0)
    assert events == [STARTED]
    assert not feed.is_viewed
    assert await feed.poll(first, 0) == (first, [])
    feed.put(MADE)
    second, events = await feed.poll(first, 0)
    assert events == [MADE]
    assert (second.feed, second.count) == (first.feed, 2)


async def test_a_poll_that_waits_returns_with_the_next_event_and_is_a_viewer() -> None:
    feed = JobFeed()
    maker = Maker(feed)
    maker.connect()
    cursor, _ = await feed.poll(Cursor(), 0)
    waiting = asyncio.create_task(feed.poll(cursor, 30, watches=True))
    await asyncio.sleep(0)
    assert maker.watched == [True]
    assert (await waiting)[1] == [ImageProgress(0, Outlook(Stage.BASE, 0, 4, 1, 1.0))]
    assert feed.is_viewed  # it is believed to ask again


async def test_a_poll_that_watches_without_a_wait_is_a_viewer_too() -> None:
    feed = JobFeed()
    maker = Maker(feed)
    maker.connect()
    assert (await feed.poll(Cursor(), 0, watches=True))[1]
    assert maker.watched == [True]
    assert feed.is_viewed


async def test_a_poll_ends_with_the_feed_or_with_its_time() -> None:
    feed = JobFeed()
    assert (await feed.poll(Cursor(), 0.01))[1] == []
    waiting = asyncio.create_task(feed.poll(Cursor(), 30))
    await asyncio.sleep(0)
    feed.close()
    assert (await waiting)[1] == []


async def test_a_cursor_of_another_feed_is_none() -> None:
    feed, other = JobFeed(), JobFeed()
    for each in (feed, other):
        each.put(STARTED)
        each.put(MADE)
    cursor, _ = await other.poll(Cursor(), 0)
    assert (await feed.poll(cursor, 0))[1] == [STARTED, MADE]


async def test_a_feed_that_is_closed_keeps_no_timer_of_a_viewer_in_another_process() -> None:
    before, feed = take_census(), JobFeed()
    waiting = asyncio.create_task(feed.poll(Cursor(), 30, watches=True))
    await asyncio.sleep(0)
    feed.close()
    await waiting
    del waiting, feed
    assert take_census() == before
