"""`SqliteStore`: the ledger in a SQLite file, or in memory.

One connection in WAL mode, used by one call at a time; `check` has one of its own. SQLite keeps no
checksums of content, so each result has one.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from serve_app.core.errors import LedgerDamaged, LedgerFault
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    IsLost,
    Job,
    JobError,
    JobFilter,
    JobState,
    RunningJob,
)
from serve_app.core.service.jobs import JobResult as Result
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.core.service.webhooks import DueWebhooks
from serve_app.ledger_store import sqlite_callers, sqlite_jobs, sqlite_webhooks
from serve_app.ledger_store.file_lock import FileLock, real_path
from serve_app.ledger_store.sqlite_claims import abandon_jobs, create_job, kept_job
from serve_app.ledger_store.sqlite_errors import (
    damaged,
    file_full,
    file_gone,
    is_lasting,
    is_out_of_pages,
    named_errors,
)
from serve_app.ledger_store.sqlite_file import (
    check_results,
    check_room,
    check_structure,
    connect,
    is_removed,
    limit_results,
    move_aside,
    open_checked,
    prepared,
    verify,
)
from serve_app.ledger_store.store import LOCK_WAIT_S, MAX_BYTES, KeptOption, job_of_row, split

logger = logging.getLogger("aura.ledger")

CHECK_INTERVAL_S = 60.0
_CHECK_S = 4.0  # seconds of structure, and a quarter of it of content, in each later check
_PROBE_BYTES = 256 << 10


class SqliteStore:
    """A `LedgerStore`. Raises `LedgerFault` where it can't be opened."""

    check_interval_s = CHECK_INTERVAL_S

    def __init__(
        self,
        place: LedgerFile,
        max_bytes: int = MAX_BYTES,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self._place = place
        self._path = real_path(place.path) if place.path else None
        self._most_bytes = max_bytes
        self._notice = ""
        self._one_call = threading.Lock()
        self._cursor = 0  # rowid of the result that was checked last
        self._inode = 0
        self._is_suspect = False  # whether only a new connection can help
        self._lock = FileLock(place.path, place.service) if place.path else None
        if place.path and self._lock:
            with named_errors():
                place.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._lock.acquire(lock_wait_s)
        try:
            self._db = self._open()
        except BaseException:
            if self._lock:
                self._lock.release()
            raise

    @property
    def notice(self) -> str:
        """See `LedgerStore`."""
        return self._notice

    def create(
        self, job: Job, claim: IdempotencyClaim | None, now: float, is_lost: IsLost
    ) -> ClaimResult:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return create_job(db, job, claim, now, is_lost)

    def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: Result | None,
        now: float,
    ) -> bool:
        """See `LedgerStore`."""
        with self._transaction() as db:
            is_kept = sqlite_jobs.finish_job(db, id, owner, state, error, result, now)
            if is_kept and result is not None:
                limit_results(db, self._most_bytes)
            return is_kept

    def read(self, id: str) -> Job | None:
        """See `LedgerStore`."""
        with self._opened() as db:
            row = sqlite_jobs.read_job(db, id)
        if row is None:
            return None
        caller, owner, created, state, code, message, meta, pngs, sizes, digest = row
        result = None
        with self._noted():
            if pngs is not None:
                verify(meta, sizes, pngs, digest)
                result = Result(split(pngs, json.loads(sizes)), meta, created)
            try:
                return job_of_row(id, caller, owner, created, state, code, message, result)
            except ValueError:  # a state that nobody wrote
                raise damaged() from None

    def has_result(self, id: str) -> bool:
        """See `LedgerStore`."""
        with self._opened() as db:
            job = kept_job(db, id)
        return job is not None and job.has_result

    def find(self, wanted: JobFilter) -> list[Job]:
        """See `LedgerStore`."""
        with self._opened() as db:
            return sqlite_jobs.list_jobs(db, wanted)

    def running(self) -> list[RunningJob]:
        """See `LedgerStore`."""
        with self._opened() as db:
            rows = db.execute("SELECT id, owner, created FROM jobs WHERE state = 'running'")
            return [RunningJob(*row) for row in rows]

    def abandon(self, jobs: Collection[RunningJob], now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            abandon_jobs(db, jobs, now)

    def accept_terms(self, caller: str, terms: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            sqlite_callers.accept_terms(db, caller, terms, now)

    def accepted_terms(self, caller: str) -> str | None:
        """See `LedgerStore`."""
        with self._opened() as db:
            return sqlite_callers.accepted_terms(db, caller)

    def take_webhooks(self, url: str, limit: int, now: float) -> DueWebhooks:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return sqlite_webhooks.take_webhooks(db, url, limit, now)

    def settle_webhook(self, id: str, due: float | None) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            sqlite_webhooks.settle_webhook(db, id, due)

    def secret(self, name: str, fresh: bytes) -> bytes:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return sqlite_callers.secret(db, name, fresh)

    def set_option(self, caller: str, name: str, value: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            sqlite_callers.set_option(db, caller, name, value, now)

    def option(self, caller: str, name: str) -> KeptOption | None:
        """See `LedgerStore`."""
        with self._opened() as db:
            return sqlite_callers.option(db, caller, name)

    def renew_option(self, caller: str, name: str, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            sqlite_callers.renew_option(db, caller, name, now)

    def use(self, caller: str, day: str, cost: float, quota: float) -> bool:
        """See `LedgerStore`."""
        with self._transaction() as db:
            return sqlite_callers.use(db, caller, day, cost, quota)

    def delete_old(self, now: float) -> None:
        """See `LedgerStore`."""
        with self._transaction() as db:
            sqlite_jobs.delete_old(db, now)

    def recover(self) -> None:
        """See `LedgerStore`. A damaged file is replaced here, where the operator wants that.

        The file is read as a whole only if a new connection is needed. Calls go on meanwhile.
        """
        with self._noted():
            self._check_room()
            needs_opening = self._is_suspect or is_removed(self._path, self._inode)
        if needs_opening:
            self._reopen()
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO probe VALUES (0, zeroblob(?))", (_PROBE_BYTES,))
        with self._transaction() as db:
            db.execute("DELETE FROM probe")

    def check(self) -> None:
        """See `LedgerStore`. Reads the structure of all pages, and the content of the next ones."""
        if self._path is None:
            return
        with self._noted():
            if is_removed(self._path, self._inode):
                raise file_gone()
            self._check_room()
            with closing(connect(self._path, "ro")) as db:
                check_structure(db, _CHECK_S)
                self._cursor = check_results(db, self._cursor, _CHECK_S / 4)

    def interrupt(self) -> None:
        """See `LedgerStore`."""
        with suppress(sqlite3.ProgrammingError):  # it was just closed
            self._db.interrupt()

    def close(self) -> None:
        """See `LedgerStore`."""
        self._db.close()
        if self._lock:
            self._lock.release()

    def _open(self) -> sqlite3.Connection:
        """Open the file, make it if there is none, and check all of it as far as time allows."""
        if self._path is None:
            return prepared(connect(None))
        try:
            return self._opened_file(self._path)
        except LedgerDamaged:
            if not self._place.replaces_damaged:
                raise
        with named_errors():
            moved = move_aside(self._path)
        logger.error("the ledger %s was damaged: it is now %s, and begun anew", self._path, moved)
        day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._notice = (
            f"the ledger's file was damaged and begun anew at {day}: idempotency keys, jobs and "
            "accepted terms of before are lost"
        )
        return self._opened_file(self._path)

    def _opened_file(self, path: Path) -> sqlite3.Connection:
        with named_errors():
            path.touch(mode=0o600)  # images carry their prompts, so nobody else may read them
            inode = path.stat().st_ino
            db = open_checked(path, self._most_bytes)
            self._inode = inode
            return db

    def _reopen(self) -> None:
        """Open the file again; the connection of before is used until then."""
        db = self._open()
        with self._one_call:
            old, self._db = self._db, db
            self._is_suspect = False
            old.close()

    def _check_room(self) -> None:
        check_room(self._path)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._one_call, self._noted():
            yield self._db

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Name errors, and remember whether they end only with a new connection."""
        try:
            with named_errors():
                yield
        except LedgerFault as fault:
            if self._path is None:
                raise
            self._is_suspect = self._is_suspect or is_lasting(fault)
            if is_out_of_pages(fault):
                self._check_room()  # else it is the limit that we set ourselves
                raise file_full() from fault
            raise

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block does, all of it or nothing."""
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a fault may have rolled back already
                    db.execute("ROLLBACK")
                raise
