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
import errno
import fcntl
import os
import queue
import re
import secrets
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from quillon.mail.message import Batch, Message
from quillon.spool.record import encode_batch, encode_message
from quillon.spool.recovery import Aside, Recovery

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch(id INTEGER PRIMARY KEY, record TEXT NOT NULL, body BLOB, path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside(id INTEGER, kind TEXT, batch INTEGER, record TEXT, reason TEXT, at TEXT);
"""
SCHEMA_VERSION = 1
_PAGE = 16384  # octets; a usual message fits into one, which takes a third of the writes that 4096 takes
_CHECKPOINT_PAGES = 1000
_ROWS = 32  # rows a statement
_MARK = "quillon-spool"
_MANY = 500  # messages of one batch whose rows the committer makes
_WAL_MAGIC = b"\x37\x7f\x06"  # sqlite.org/fileformat2.html 4.1
_WATCHED = ("", "bodies", "lock", "spool.db", "spool.db-wal")
BODY_NAME = re.compile(r"[0-9]{1,20}")
INTERVAL = 0.004  # seconds between the beginnings of two commits at least: under load groups grow instead of commits
RETRY = 0.5  # seconds until removals and updates that failed are tried again

Done = Callable[[Exception | None], None]


class SpoolError(Exception):
    """The spool cannot be used. The message names the file and what is wrong; `may_heal` tells that waiting helps, as
    for space."""

    def __init__(self, text: str, *, may_heal: bool = False) -> None:
        super().__init__(text)
        self.may_heal = may_heal


class SpoolLost(Exception):
    """The files of the spool are not those that it was opened with: nothing more is taken."""


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
    aside: list[Aside] = field(default_factory=list)

    late: list[tuple[int, list[Message]]] = field(default_factory=list)  # to be encoded by the committer

    def __bool__(self) -> bool:
        return bool(self.batches or self.messages or self.changes)

    @property
    def changes(self) -> bool:
        """Whether there are updates or removals."""
        return bool(self.updates or self.removed or self.removed_batches or self.aside)

    def without_changes(self) -> _Group:
        """Take the inserts out into a group of their own."""
        other = _Group(self.batches, self.messages, self.callbacks, self.new_files, late=self.late)
        self.batches, self.messages, self.callbacks, self.new_files, self.late = [], [], [], [], []
        return other


class Store:
    """`mode` is the file mode of what is created. `report` gets one line for each entry set aside or write failed."""

    def __init__(self, folder: Path, mode: int, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._mode = mode
        self._report = report
        self._lock_file = -1
        self._identity = ""
        self._kept: set[int] = set()  # batches that an entry set aside still needs
        self._recovery: Recovery | None = None  # as long as what was there is not read
        self._fresh: set[int] = set()  # batches that came meanwhile
        self._group = _Group()
        self._busy = False  # a commit runs: nobody else may touch the connection
        self._scheduled = False
        self._begun = 0.0  # when the last commit began, in the loop's time
        self._todo: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._database: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failing = ""  # why the last group was not written, until one is
        self._lost = ""  # why nothing is taken any more
        self._files: dict[str, tuple[int, int, int]] = {}  # device, inode, least size of what must stay in place
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self._reader: sqlite3.Connection | None = None

    # start and stop -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock and open the spool; what it holds is read by `recovered` or `read`. Raises SpoolError."""
        try:
            (self.folder / "bodies").mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock()
            self._check_identity()
            with self._connect(create=True) as database:
                self._identify(database)
                self._sweep_files(database)
                aside = database.execute("SELECT batch FROM set_aside").fetchall()
                self._kept.update(number for (number,) in aside)
            database.close()
            file = self.folder / "spool.db"
            if aside:
                self._report(f"spool: {len(aside)} entries that could not be read are set aside in {file}")
            self._recovery = Recovery(self._connect(), str(file), self.body_file, self._report)
            os.chmod(self.folder / "spool.db", self._mode)
        except OSError as error:
            raise SpoolError(f"spool {self.folder}: {error.strerror}", may_heal=is_full(error)) from None
        except sqlite3.Error as error:
            text = f"spool {self.folder / 'spool.db'}: {error}; nothing was changed"
            raise SpoolError(text, may_heal=is_full(error)) from None

    def start(self) -> None:
        """Start the committer; called on the event loop that callbacks are to run on. Raises SpoolError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._database = self._connect()
        except sqlite3.Error as error:
            raise SpoolError(f"spool {self.folder / 'spool.db'}: {error}", may_heal=is_full(error)) from None
        self._thread = threading.Thread(target=self._run, name="spool-commit", daemon=True)
        self._thread.start()

    async def close(self, patience: float = 10.0) -> None:
        """Write what is waiting, for so many seconds at most, and let go."""
        assert self._loop is not None
        end = self._loop.time() + patience
        while (self._busy or self._group) and self._loop.time() < end:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.005)
        if self._group:
            left = len(self._group.removed) + len(self._group.updates)
            self._report(f"spool: {self.folder}: {left} changes of messages could not be written at the end")
        self._todo.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._database is not None:
            self._database.close()
        self.release()

    def release(self) -> None:
        """Let go of the lock, and of what reads."""
        self._mark("closed")
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

    def _check_identity(self) -> None:
        """A spool whose database has gone, or is another one, is not begun anew without a word. Raises SpoolError."""
        known = os.pread(self._lock_file, 200, 0).decode("ascii", "replace").split()
        file = self.folder / "spool.db"
        if len(known) < 2 or known[0] != _MARK:
            return
        self._identity = known[1]
        if not file.exists() or not file.stat().st_size:
            raise SpoolError(
                f"spool {file} is missing, or empty, and was there before: restore it, or remove"
                f" {self.folder / 'lock'} to begin anew without the mail that it held"
            )
        if known[2:3] == ["open"] and not (self.folder / "spool.db-wal").exists():
            self._report(
                f"spool: {file}-wal is missing although the spool was not closed: mail of its last minutes may be lost"
            )

    def _identify(self, database: sqlite3.Connection) -> None:
        """Give database and lock file the same name, and tell that the spool is open. Raises SpoolError."""
        database.execute("CREATE TABLE IF NOT EXISTS identity(id TEXT)")
        row = database.execute("SELECT id FROM identity").fetchone()
        if row is None:
            self._identity = self._identity or secrets.token_hex(16)
            database.execute("INSERT INTO identity VALUES(?)", (self._identity,))
        elif self._identity and row[0] != self._identity:
            raise SpoolError(
                f"spool {self.folder / 'spool.db'} is that of another spool: restore the right one, or remove"
                f" {self.folder / 'lock'} to use it"
            )
        else:
            self._identity = str(row[0])
        self._mark("open")

    def _mark(self, state: str) -> None:
        if self._lock_file >= 0 and self._identity:
            os.pwrite(self._lock_file, f"{_MARK} {self._identity} {state:6}\n".encode(), 0)

    def _connect(self, *, create: bool = False) -> sqlite3.Connection:
        """Opening writes nothing where the database is there: on a full disk it has to succeed."""
        address = f"file:{quote(str(self.folder / 'spool.db'))}?mode={'rwc' if create else 'rw'}"
        database = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        database.execute(f"PRAGMA page_size={_PAGE}")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise SpoolError(f"spool {self.folder}: layout {version} is of another version of Quillon")
        if version == 0:
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        return database

    async def recovered(self) -> AsyncIterator[list[Message]]:
        """The messages of an earlier life, in pieces, while new ones come: after `start`. They are read off the event
        loop. Raises sqlite3.Error where the database cannot be read at all."""
        assert self._loop is not None
        assert self._recovery is not None
        pieces = self._recovery.pieces()
        with ThreadPoolExecutor(1, thread_name_prefix="spool-recover") as reader:
            while (piece := await self._loop.run_in_executor(reader, next, pieces, None)) is not None:
                for aside in piece.aside:
                    self._name_aside(aside)
                self._group.aside += piece.aside
                self._group.removed_batches += [n for n in piece.orphans if n not in self._fresh]
                if self._group:
                    self._soon()
                yield [message for message in piece.messages if message.batch.id.number not in self._fresh]
        self._recovery = None
        self._fresh.clear()

    def read(self) -> list[Message]:
        """As `recovered`, all at once, for a spool that nobody serves. Raises sqlite3.Error."""
        assert self._recovery is not None
        found: list[Message] = []
        with self._connect() as database:
            for piece in self._recovery.pieces():
                found += piece.messages
                for aside in piece.aside:
                    self._name_aside(aside)
                    _set_aside(database, aside)
                _delete(database, "batch", piece.orphans)
        database.close()
        self._recovery = None
        return found

    def _name_aside(self, aside: Aside) -> None:
        self._kept.add(aside.batch)
        if aside.of is not None:
            aside.of.left -= 1
        self._report(f"spool: {aside.kind} {aside.number} in {self.folder / 'spool.db'} is set aside: {aside.why}")

    def _sweep_files(self, database: sqlite3.Connection) -> None:
        """Body files that no row names were never acknowledged: their commit did not happen."""
        for file in (self.folder / "bodies").iterdir():
            if not file.is_file():
                continue
            number = int(file.name) if BODY_NAME.fullmatch(file.name) and int(file.name) < 1 << 63 else -1
            named = database.execute("SELECT 1 FROM batch WHERE id = ? AND path = ?", (number, file.name)).fetchone()
            if named is None:
                file.unlink()

    def adopt(self, other: Path) -> int:
        """Take over the messages of a spool that no worker owns any more; call before `open`. Gives their number.

        Rows are copied and committed here before they are removed there, so a crash in between loses nothing.
        Raises SpoolError.
        """
        source = Store(other, self._mode, self._report)
        source._lock()
        if not (other / "spool.db").exists():
            source.release()
            if any((other / "bodies").glob("*")):
                raise SpoolError(f"spool {other / 'spool.db'} is missing, and bodies are there: restore it")
            return 0
        try:
            (self.folder / "bodies").mkdir(mode=0o750, parents=True, exist_ok=True)
            for file in (other / "bodies").iterdir():
                target = self.folder / "bodies" / file.name
                if not target.exists():
                    os.link(file, target)
            source._connect().close()
            with self._connect(create=True) as database:
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
        if self._lost:
            assert self._loop is not None
            self._loop.call_soon(_call_all, self._loop, [done], SpoolLost(self._lost))
            return
        number = batch.id.number
        body = None if batch.path else batch.body
        row = (number, encode_batch(batch), body, batch.path)
        encoded = [] if len(messages) > _MANY else [(m.id.number, number, encode_message(m)) for m in messages]
        group = self._group
        group.batches.append(row)
        group.messages += encoded
        if not encoded:
            group.late.append((number, messages))  # the loop has others to serve
        if batch.path:
            group.new_files.append(batch.path)
        group.callbacks.append(done)
        batch.left = len(messages)
        if self._recovery is not None:
            self._fresh.add(number)
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
        if not BODY_NAME.fullmatch(name):
            raise OSError(errno.EINVAL, "no name of a body file", name)
        return self.folder / "bodies" / name

    def drop_body_file(self, name: str) -> None:
        """Remove a body file whose message was not accepted. One that stays is swept at the next start."""
        try:
            self.body_file(name).unlink(missing_ok=True)
        except OSError as error:
            self._report(f"spool: cannot remove {self.body_file(name)}: {error.strerror}")

    async def body_or_nothing(self, batch: Batch, limit: int) -> bytes:
        """Read a body for a notification, so many octets of it (0: all); empty if it cannot be read, which is
        reported."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._read_body, batch.id.number, limit) or b""
        except (OSError, sqlite3.Error, TypeError) as error:
            self._report(f"spool: cannot read the body of {batch.id}: {error}")
            return b""

    async def body(self, batch: Batch) -> bytes | None:
        """Read a body that is not resident; None if the spool does not have it. Raises OSError, sqlite3.Error."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_body, batch.id.number)

    def _read_body(self, number: int, limit: int = 0) -> bytes | None:
        if self._reader is None:
            self._reader = self._connect()
        row = self._reader.execute("SELECT body, path FROM batch WHERE id = ?", (number,)).fetchone()
        if row is None:
            return None
        body, path = row
        if not path:
            return bytes(body)[: limit or None]
        with self.body_file(path).open("rb") as file:
            return file.read(limit or -1)

    @property
    def failing(self) -> str:
        """Why nothing can be written; empty if it can."""
        return self._lost or self._failing

    @property
    def waiting(self) -> int:
        """Removals and updates that are not on disk yet."""
        return len(self._group.removed) + len(self._group.updates)

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
        if self._failing and group.changes:
            self._group = group.without_changes()  # what may be too much for the disk does not go along
        self._busy = True
        assert self._loop is not None
        self._begun = self._loop.time()
        if group.late or self._failing:
            self._todo.put(group)  # the committer does all of it
            return
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
            for aside in group.aside:
                _set_aside(database, aside)
            _delete(database, "message", group.removed)
            _delete(database, "batch", group.removed_batches)
        except Exception as error:
            # memory, the disk, a value that no row can hold: the group is over, and is told so
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
        failed = self._begun_late(group) if group.late or self._failing else None
        if failed is not None:
            return failed
        try:
            for name in group.new_files:
                _sync(self.folder / "bodies" / name)
            if group.new_files:
                _sync(self.folder / "bodies")
            database.execute("COMMIT")
        except Exception as error:
            self._roll_back(database)
            self._overwrite(database)
            return error
        try:
            self._lost = self._lost or self._displaced()
        except OSError as error:
            self._lost = f"{self.folder / 'spool.db-wal'}: {error.strerror}; it was removed while the server runs"
        if self._lost:
            return SpoolLost(self._lost)
        for name in group.dead_files:
            try:
                self.body_file(name).unlink(missing_ok=True)
            except OSError as error:
                self._report(f"spool: cannot remove {self.body_file(name)}: {error.strerror}")
        return None

    def _begun_late(self, group: _Group) -> Exception | None:
        """What the loop has left to the committer: many rows to encode, or a group after one that failed."""
        database = self._database
        assert database is not None
        if self._failing:
            try:
                # room for removals: the log of the database is written back, and used again from its beginning
                database.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
                self._overwrite(database)
            except sqlite3.Error as error:
                return error
        for number, messages in group.late:
            group.messages += [(m.id.number, number, encode_message(m)) for m in messages]
        group.late.clear()
        return self._statements(group)

    def _overwrite(self, database: sqlite3.Connection) -> None:
        """After a COMMIT that failed its frames may stand whole in the log, and come back after a crash although they
        were refused. One small write in their place ends that (sqlite.org/fileformat2.html 4.3)."""
        try:
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error:
            return  # the disk takes nothing: `_begun_late` tries again before anything else is written

    def _displaced(self) -> str:
        """Whether the files that were opened are those that lie there; else what has become of them."""
        for name in _WATCHED:
            path = self.folder / name if name else self.folder
            try:
                state = os.stat(path)
            except OSError as error:
                if name in self._files or name != "spool.db-wal":
                    return f"{path}: {error.strerror}; it was removed while the server runs"
                continue
            known = self._files.get(name)
            size = state.st_size if name.startswith("spool.db") else 0
            if known is not None and known[:2] != (state.st_dev, state.st_ino):
                return f"{path} was replaced while the server runs"
            if known is not None and size < known[2]:
                return f"{path} was truncated while the server runs"
            self._files[name] = (state.st_dev, state.st_ino, size)
        # a log that was cut off and written behind its beginning is as long as before
        log = self.folder / "spool.db-wal"
        with log.open("rb", buffering=0) as file:
            if file.read(3) != _WAL_MAGIC:
                return f"{log} was truncated while the server runs"
        return ""

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
        try:
            self._note_outcome(group, error)
        finally:
            _call_all(self._loop, group.callbacks, error)
        if error is None:
            if self._group:
                self._soon()
        elif self._group:
            self._scheduled = True
            self._loop.call_later(RETRY, self._begin)

    def _note_outcome(self, group: _Group, error: Exception | None) -> None:
        """Say once what fails, and once that it works again; keep what is still to be done."""
        if error is None:
            if self._failing:
                self._failing = ""
                self._report(f"spool: {self.folder / 'spool.db'} is written again")
            return
        words = str(error) or type(error).__name__
        if words != self._failing:
            self._report(f"spool: {self.folder / 'spool.db'}: write failed: {words}")
        self._failing = words
        assert self._loop is not None
        waiting = self._group.without_changes()
        _call_all(self._loop, waiting.callbacks, error)  # nobody knows how long it takes: their clients come again
        self._put_back(group)
        if not self._group:
            # nothing else waits: look whether the disk takes anything, so that new mail is taken again
            self._group.updates.append(("", -1))

    def _put_back(self, group: _Group) -> None:
        """Inserts of a failed group are over, and told so; what it took away or changed is tried again."""
        self._group.updates[:0] = group.updates
        self._group.removed[:0] = group.removed
        self._group.removed_batches[:0] = group.removed_batches
        self._group.dead_files[:0] = group.dead_files
        self._group.aside[:0] = group.aside


def is_full(error: BaseException) -> bool:
    """Whether it is for want of room, or of leave to write, that something was not written."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) or "full" in str(error)


def _set_aside(database: sqlite3.Connection, aside: Aside) -> None:
    """Keep an entry that cannot be read, body and all, out of the way of those that can."""
    kind, number, batch, why, _ = aside
    database.execute(
        "INSERT INTO set_aside SELECT ?1, ?2, ?3, record, ?4, datetime('now')"  # noqa: S608 - our names
        f" FROM {kind} WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM set_aside WHERE id = ?1 AND kind = ?2)",
        (number, kind, batch, why),
    )
    if kind == "message":
        database.execute("DELETE FROM message WHERE id = ?", (number,))


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
