"""The spool of one worker: an SQLite database (WAL, synchronous=FULL) and a folder for large bodies.

Statements run on the event loop, where they cost microseconds of CPU and touch memory; the COMMIT, which syncs, runs on
a thread of its own. What arrives while a commit runs goes into the next one, so the price of an fsync is shared by as
many messages as come in its time. A caller is told on the event loop, after the commit has returned: that, and nothing
before it, is the moment a message is ours. An insert that fails is told so and leaves nothing behind; removals and
updates that fail are tried again, for the worst they can do is a second delivery.

Layout below `folder`: `spool.db`, `bodies/<number>` (synced before the row that names them), `lock`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from quillon.mail.message import Batch, Message
from quillon.spool.record import RecordError, decode_batch, decode_message, encode_batch, encode_message

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch(id INTEGER PRIMARY KEY, record TEXT NOT NULL, body BLOB, path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside(id INTEGER, kind TEXT, batch INTEGER, record TEXT, reason TEXT, at TEXT);
"""
SCHEMA_VERSION = 1
_PAGE = 16384  # octets; a usual message fits into one, which takes a third of the writes that 4096 takes
_CHECKPOINT_PAGES = 1000
_ROWS = 32  # rows a statement
INTERVAL = 0.004  # seconds between the beginnings of two commits at least: under load groups grow instead of commits
RETRY = 0.5  # seconds until removals and updates that failed are tried again

Done = Callable[[Exception | None], None]


class SpoolError(Exception):
    """The spool cannot be used. The message names the file and what is wrong."""


@dataclass
class _Group:
    """What goes into one commit."""

    batches: list[tuple[int, str, bytes | None, str]] = field(default_factory=list)
    messages: list[tuple[int, int, str]] = field(default_factory=list)
    callbacks: list[Done] = field(default_factory=list)
    new_files: list[str] = field(default_factory=list)
    updates: list[tuple[str, int]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    removed_batches: list[int] = field(default_factory=list)
    dead_files: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.batches or self.messages or self.updates or self.removed or self.removed_batches)


class Store:
    """`mode` is the file mode of what is created. `report` gets one line for each entry set aside or write failed."""

    def __init__(self, folder: Path, mode: int, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._mode = mode
        self._report = report
        self._lock_file = -1
        self._kept: set[int] = set()  # batches that an entry set aside still needs
        self._group = _Group()
        self._busy = False  # a commit runs: nobody else may touch the connection
        self._scheduled = False
        self._begun = 0.0  # when the last commit began, in the loop's time
        self._todo: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._database: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self._reader: sqlite3.Connection | None = None

    # start and stop -------------------------------------------------------------------------------------------

    def open(self) -> list[Message]:
        """Lock, open, and walk the spool: every message of an earlier life. Raises SpoolError."""
        try:
            (self.folder / "bodies").mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock()
            with self._connect() as database:
                messages = list(self._recover(database))
            database.close()
            self._sweep_files()
            os.chmod(self.folder / "spool.db", self._mode)
        except OSError as error:
            raise SpoolError(f"spool {self.folder}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise SpoolError(f"spool {self.folder / 'spool.db'}: {error}; nothing was changed") from None
        for message in messages:
            message.batch.left = 0
        for message in messages:
            message.batch.left += 1
        return messages

    def start(self) -> None:
        """Start the committer; called on the event loop that callbacks are to run on. Raises SpoolError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._database = self._connect()
        except sqlite3.Error as error:
            raise SpoolError(f"spool {self.folder / 'spool.db'}: {error}") from None
        self._thread = threading.Thread(target=self._run, name="spool-commit", daemon=True)
        self._thread.start()

    async def close(self, patience: float = 10.0) -> None:
        """Write what is waiting, for so many seconds at most, and let go."""
        assert self._loop is not None
        end = self._loop.time() + patience
        while (self._busy or self._group) and self._loop.time() < end:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.005)
        self._todo.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._database is not None:
            self._database.close()
        self.release()

    def release(self) -> None:
        """Let go of the lock, and of what reads."""
        self._readers.shutdown(wait=True)
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _lock(self) -> None:
        self._lock_file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            self._lock_file = -1
            raise SpoolError(f"spool {self.folder} is in use by another process") from None

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "spool.db", isolation_level=None, check_same_thread=False, timeout=30)
        database.execute(f"PRAGMA page_size={_PAGE}")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise SpoolError(f"spool {self.folder}: layout {version} is of another version of Quillon")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        return database

    def _recover(self, database: sqlite3.Connection) -> Iterator[Message]:
        """Every readable message; what cannot be read is set aside and named, never dropped."""
        batches: dict[int, Batch] = {}
        for number, text, path in database.execute("SELECT id, record, path FROM batch").fetchall():
            try:
                if path and not (self.folder / "bodies" / path).exists():
                    raise RecordError(f"its body file {path} is missing")
                batches[number] = decode_batch(number, text, path)
            except RecordError as error:
                self._set_aside(database, "batch", number, number, text, str(error))
        used: set[int] = set()
        self._kept.update(number for (number,) in database.execute("SELECT batch FROM set_aside"))
        for number, batch_number, text in database.execute("SELECT id, batch, record FROM message").fetchall():
            try:
                batch = batches.get(batch_number)
                if batch is None:
                    raise RecordError("its batch is missing or unreadable")
                message = decode_message(number, text, batch)
            except RecordError as error:
                self._set_aside(database, "message", number, batch_number, text, str(error))
                continue
            finally:
                used.add(batch_number)
            yield message
        for number in batches.keys() - used:
            # all its messages are done, and none was set aside
            database.execute("DELETE FROM batch WHERE id = ? AND id NOT IN (SELECT batch FROM set_aside)", (number,))

    def _set_aside(self, database: sqlite3.Connection, kind: str, number: int, batch: int, text: str, why: str) -> None:
        """Keep an entry that cannot be read, body and all, out of the way of those that can."""
        database.execute(
            "INSERT INTO set_aside SELECT ?1, ?2, ?3, ?4, ?5, datetime('now')"
            " WHERE NOT EXISTS (SELECT 1 FROM set_aside WHERE id = ?1 AND kind = ?2)",
            (number, kind, batch, text, why),
        )
        self._kept.add(batch)
        if kind == "message":
            database.execute("DELETE FROM message WHERE id = ?", (number,))
        self._report(f"spool: {kind} {number} in {self.folder / 'spool.db'} is set aside: {why}")

    def _sweep_files(self) -> None:
        """Body files that no row names were never acknowledged: their commit did not happen."""
        with self._connect() as database:
            named = {path for (path,) in database.execute("SELECT path FROM batch")}
        database.close()
        for file in (self.folder / "bodies").iterdir():
            if file.name not in named:
                file.unlink()

    def adopt(self, other: Path) -> int:
        """Take over the messages of a spool that no worker owns any more; call before `open`. Gives their number.

        Rows are copied and committed here before they are removed there, so a crash in between loses nothing.
        Raises SpoolError.
        """
        source = Store(other, self._mode, self._report)
        source._lock()
        try:
            (self.folder / "bodies").mkdir(mode=0o750, parents=True, exist_ok=True)
            for file in (other / "bodies").iterdir():
                target = self.folder / "bodies" / file.name
                if not target.exists():
                    os.link(file, target)
            source._connect().close()
            with self._connect() as database:
                database.execute("ATTACH DATABASE ? AS other", (str(other / "spool.db"),))
                count = int(database.execute("SELECT count(*) FROM other.message").fetchone()[0])
                for table in ("batch", "message"):
                    new = f"WHERE id NOT IN (SELECT id FROM main.{table})"  # noqa: S608 - our names
                    database.execute(f"INSERT INTO {table} SELECT * FROM other.{table} {new}")  # noqa: S608 - our names
                for table in ("batch", "message"):
                    here = f"WHERE (id, record) IN (SELECT id, record FROM main.{table})"  # noqa: S608 - our names
                    database.execute(f"DELETE FROM other.{table} {here}")  # noqa: S608 - our names
                database.execute("INSERT INTO set_aside SELECT * FROM other.set_aside")
                database.execute("DELETE FROM other.set_aside")
                kept = {str(path) for (path,) in database.execute("SELECT path FROM other.batch")}
            database.close()
            for file in list((other / "bodies").iterdir()):
                if file.name not in kept:
                    file.unlink()
        except (OSError, sqlite3.Error) as error:
            raise SpoolError(f"spool {other} cannot be taken over: {error}") from None
        finally:
            source.release()
        return count

    # writing --------------------------------------------------------------------------------------------------

    def insert(self, batch: Batch, messages: list[Message], done: Done) -> None:
        """Store a batch; `done(None)` is called on the loop once it is on disk, or `done(error)` if it is not."""
        number = batch.id.number
        body = None if batch.path else batch.body
        group = self._group
        group.batches.append((number, encode_batch(batch), body, batch.path))
        group.messages += [(message.id.number, number, encode_message(message)) for message in messages]
        if batch.path:
            group.new_files.append(batch.path)
        group.callbacks.append(done)
        batch.left = len(messages)
        self._soon()

    def update(self, message: Message) -> None:
        """Write the retry state of a message, so that a restart does not begin anew."""
        self._group.updates.append((encode_message(message), message.id.number))
        self._soon()

    def remove(self, message: Message) -> None:
        """A message is done; with the last one its batch and body go."""
        batch = message.batch
        batch.left -= 1
        group = self._group
        group.removed.append(message.id.number)
        if batch.left == 0 and batch.id.number not in self._kept:
            group.removed_batches.append(batch.id.number)
            if batch.path:
                group.dead_files.append(batch.path)
        self._soon()

    def body_path(self, batch: Batch) -> Path:
        """Where the file of a large body lies."""
        return self.body_file(batch.path)

    def new_body_file(self, number: int) -> tuple[str, int]:
        """Create the file of a large body: its name, and a descriptor that the caller writes to and closes."""
        name = str(number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return name, os.open(self.body_file(name), flags, self._mode)

    def body_file(self, name: str) -> Path:
        """Where a body file lies."""
        return self.folder / "bodies" / name

    def drop_body_file(self, name: str) -> None:
        """Remove a body file whose message was not accepted. One that stays is swept at the next start."""
        try:
            self.body_file(name).unlink(missing_ok=True)
        except OSError as error:
            self._report(f"spool: cannot remove {self.body_file(name)}: {error.strerror}")

    def read_body_now(self, batch: Batch) -> bytes:
        """Read a body at once, for a notification; empty if it cannot be read, which is reported."""
        try:
            return self._readers.submit(self._read_body, batch.id.number).result() or b""
        except (OSError, sqlite3.Error) as error:
            self._report(f"spool: cannot read the body of {batch.id}: {error}")
            return b""

    async def body(self, batch: Batch) -> bytes | None:
        """Read a body that is not resident; None if the spool does not have it. Raises OSError, sqlite3.Error."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_body, batch.id.number)

    def _read_body(self, number: int) -> bytes | None:
        if self._reader is None:
            self._reader = self._connect()
        row = self._reader.execute("SELECT body, path FROM batch WHERE id = ?", (number,)).fetchone()
        if row is None:
            return None
        body, path = row
        return (self.folder / "bodies" / path).read_bytes() if path else bytes(body)

    # groups ---------------------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Write at the end of this round of the loop, or when the running commit is done."""
        if not self._busy and not self._scheduled and self._loop is not None:
            self._scheduled = True
            wait = self._begun + INTERVAL - self._loop.time()
            if wait > 0:
                self._loop.call_later(wait, self._begin)
            else:
                self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        if self._busy or not self._group:
            return
        group, self._group = self._group, _Group()
        self._busy = True
        assert self._loop is not None
        self._begun = self._loop.time()
        error = self._statements(group)
        if error is None:
            self._todo.put(group)
        else:
            self._finished(group, error)

    def _statements(self, group: _Group) -> Exception | None:
        """Everything of a transaction but its commit."""
        database = self._database
        assert database is not None
        try:
            database.execute("BEGIN IMMEDIATE")
            _insert(database, "batch", 4, group.batches)
            _insert(database, "message", 3, group.messages)
            if group.updates:
                database.executemany("UPDATE message SET record = ? WHERE id = ?", group.updates)
            _delete(database, "message", group.removed)
            _delete(database, "batch", group.removed_batches)
        except (sqlite3.Error, OverflowError) as error:
            self._roll_back(database)
            return error
        return None

    def _run(self) -> None:
        """The committer's thread."""
        assert self._loop is not None
        try:
            while (group := self._todo.get()) is not None:
                self._loop.call_soon_threadsafe(self._finished, group, self._commit(group))
        except BaseException as error:
            # without a committer this process would take mail and never answer; the supervisor starts another
            print(f"quillon: spool {self.folder}: the committer ended: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    def _commit(self, group: _Group) -> Exception | None:
        database = self._database
        assert database is not None
        try:
            for name in group.new_files:
                _sync(self.folder / "bodies" / name)
            if group.new_files:
                _sync(self.folder / "bodies")
            database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._roll_back(database)
            return error
        for name in group.dead_files:
            try:
                self.body_file(name).unlink(missing_ok=True)
            except OSError as error:
                self._report(f"spool: cannot remove {self.body_file(name)}: {error.strerror}")
        return None

    def _roll_back(self, database: sqlite3.Connection) -> None:
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._report(f"spool: {self.folder / 'spool.db'}: rollback failed: {error}")

    def _finished(self, group: _Group, error: Exception | None) -> None:
        """A group is on disk, or has failed: tell its callers, and go on with what has come meanwhile."""
        assert self._loop is not None
        self._busy = False
        if error is not None:
            self._report(f"spool: {self.folder / 'spool.db'}: write failed: {error}")
            self._put_back(group)
        _call_all(self._loop, group.callbacks, error)
        if error is None:
            if self._group:
                self._soon()
        elif self._group:
            self._scheduled = True
            self._loop.call_later(RETRY, self._begin)

    def _put_back(self, group: _Group) -> None:
        """Inserts of a failed group are over, and told so; what it took away or changed is tried again."""
        self._group.updates[:0] = group.updates
        self._group.removed[:0] = group.removed
        self._group.removed_batches[:0] = group.removed_batches
        self._group.dead_files[:0] = group.dead_files


def _call_all(loop: asyncio.AbstractEventLoop, callbacks: list[Done], error: Exception | None) -> None:
    for callback in callbacks:
        try:
            callback(error)
        except Exception as defect:
            # the others of the group have been committed too and must be told
            loop.call_exception_handler({"message": "answer to a commit", "exception": defect})


def _insert(database: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
    """Many rows a statement: fewer statements, and fewer turns of the interpreter lock."""
    row = "(" + ",".join("?" * columns) + ")"
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        values = ",".join([row] * len(part))
        database.execute(f"INSERT INTO {table} VALUES{values}", [value for r in part for value in r])


def _delete(database: sqlite3.Connection, table: str, numbers: Sequence[int]) -> None:
    for start in range(0, len(numbers), _ROWS):
        part = numbers[start : start + _ROWS]
        marks = ",".join("?" * len(part))
        database.execute(f"DELETE FROM {table} WHERE id IN ({marks})", part)  # noqa: S608 - only marks are put in


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
