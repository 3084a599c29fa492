"""The log of a replica: into the log of Serve, and into a feed from which `aura up` reads it.

Serve writes to files of the replica's node, and Ray passes them on to a terminal only together with
everything else that its processes print. The feed reaches `up` through a call, whatever the node.
"""

import json
import logging
from collections import deque
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

_ROOT = "aura"  # the logger above all of this package
_CLIENTS = ("httpx2", "httpcore")  # which log whole addresses, where a secret may be
_MAX_LINES = 1000  # that the feed keeps for a reader that is late
_TEXT = "%(asctime)s %(levelname)-8s %(message)s"


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a replica writes its log."""

    level: str = "info"
    as_json: bool = False


DEFAULT_LOG = LogOptions()


@dataclass(frozen=True, slots=True)
class LogLines:
    """What a replica has logged since a cursor; a line with a stack trace is several."""

    replica: str
    cursor: int  # the number of the last line
    lines: tuple[str, ...]


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with the record's own `fields` beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            entry["stack"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class LogFeed(logging.Handler):
    """Keeps the newest lines of a replica for its readers, each of which has a cursor."""

    def __init__(self, replica: str, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._replica = replica
        self._numbers = count(1)
        self._lines: deque[tuple[int, str]] = deque(maxlen=_MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            self._lines.append((next(self._numbers), self.format(record)))
        except Exception:
            self.handleError(record)

    def after(self, cursors: Mapping[str, int]) -> LogLines:
        """Return the lines that a reader lacks; the cursors are those that it has, by replica."""
        cursor = cursors.get(self._replica, 0)
        with self.lock:  # type: ignore[union-attr]  # None only where there are no threads
            lines = [(number, line) for number, line in self._lines if number > cursor]
        last = lines[-1][0] if lines else cursor
        return LogLines(self._replica, last, tuple(line for _, line in lines))


class ServeLogHandler(logging.Handler):
    """Passes records on to the log of Serve.

    It does so outside of Serve's request context, from which Serve would take the prefix of the
    application as the route, and the id that the client sent, whatever it is, as the request's.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        copy = logging.makeLogRecord(record.__dict__)
        vars(copy).pop("fields", None)
        copy.ray_serve_extra_fields = fields_of(record)  # which Serve's JSON puts beside its own
        Context().run(logging.getLogger("ray.serve").handle, copy)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that a call to a logger gave in `extra={"fields": ...}`."""
    return dict(getattr(record, "fields", {}))


def open_log(replica: str, options: LogOptions) -> LogFeed:
    """Send what this process logs to Serve's log and to a feed; return the feed."""
    feed = LogFeed(replica, JsonFormatter() if options.as_json else logging.Formatter(_TEXT))
    logger = logging.getLogger(_ROOT)
    logger.setLevel(options.level.upper())
    logger.handlers = [feed, ServeLogHandler()]
    logger.propagate = False
    for library in _CLIENTS:
        logging.getLogger(library).setLevel(logging.WARNING)
    return feed
