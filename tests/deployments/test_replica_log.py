"""The log of a replica: its lines as text and JSON, in Serve's log and in a feed."""

import json
import logging
from collections.abc import Iterator

import pytest

from serve_app.deployments.replica_log import LogOptions, open_log

FIELDS = {"method": "GET", "status": 200}


class Records(logging.Handler):
    """Keeps the records that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


@pytest.fixture
def serve_log() -> Iterator[list[logging.LogRecord]]:
    """Return what reaches Serve's log, and put all loggers back."""
    loggers = [logging.getLogger(name) for name in ("aura", "ray.serve")]
    before = [(log, log.handlers, log.level, log.propagate) for log in loggers]
    records = Records()
    loggers[1].handlers = [records]
    yield records.kept
    for log, handlers, level, propagate in before:
        log.handlers, log.level, log.propagate = handlers, level, propagate
        log.setLevel(level)


def test_a_reader_gets_each_line_once(serve_log: list[logging.LogRecord]) -> None:
    feed, cursors = open_log("r1", LogOptions()), {"r2": 7}
    logging.getLogger("aura.access").info("one")
    first = feed.after(cursors)
    assert [line.split(maxsplit=3)[2:] for line in first.lines] == [["INFO", "one"]]
    logging.getLogger("aura.access").info("two")
    second = feed.after(cursors | {first.replica: first.cursor})
    assert [line.split()[-1] for line in second.lines] == ["two"]
    assert feed.after({second.replica: second.cursor}).lines == ()


def test_a_late_reader_gets_the_newest_lines(serve_log: list[logging.LogRecord]) -> None:
    feed = open_log("r1", LogOptions())
    for number in range(1500):
        logging.getLogger("aura.access").info("line %d", number)
    lines = feed.after({}).lines
    assert (len(lines), lines[-1].split()[-1]) == (1000, "1499")


def test_lines_below_the_level_are_not_logged(serve_log: list[logging.LogRecord]) -> None:
    feed = open_log("r1", LogOptions("warning"))
    logging.getLogger("aura.access").info("one")
    logging.getLogger("aura.jobs").warning("two")
    assert [line.split()[-1] for line in feed.after({}).lines] == ["two"]
    assert [record.getMessage() for record in serve_log] == ["two"]


def test_json_lines_have_the_fields_and_the_stack_of_an_error(
    serve_log: list[logging.LogRecord],
) -> None:
    feed = open_log("r1", LogOptions(as_json=True))
    log = logging.getLogger("aura.access")
    log.info("a line", extra={"fields": FIELDS})
    try:
        raise KeyError("boom")
    except KeyError:
        log.exception("failed")
    first, second = map(json.loads, feed.after({}).lines)
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "aura.access", "message": "a line", **FIELDS}
    assert second["stack"].splitlines()[-1] == "KeyError: 'boom'"


def test_serve_gets_the_fields_under_the_name_that_its_json_knows(
    serve_log: list[logging.LogRecord],
) -> None:
    open_log("r1", LogOptions())
    logging.getLogger("aura.access").info("a line", extra={"fields": FIELDS})
    (record,) = serve_log
    assert record.__dict__["ray_serve_extra_fields"] == FIELDS
    assert "fields" not in record.__dict__
