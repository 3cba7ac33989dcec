"""The tier of what waits: an SQLite database (WAL, synchronous=FULL), a row for each message and each batch.

What has been tried in vain comes here from the log, and what the log has no place for. All of it happens on the
committer's thread. After a COMMIT that moved a batch, and before anything else is done to it here, its messages are
done in the log.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from quillon.mail.message import Batch, Message
from quillon.spool.aside import Aside, set_aside
from quillon.spool.bodies import Bodies
from quillon.spool.committer import Committer, Done, call_all
from quillon.spool.errors import SpoolError, SpoolLost, is_full
from quillon.spool.log_octets import DamageError, Record
from quillon.spool.presence import Presence
from quillon.spool.record import encode_batch, encode_message
from quillon.spool.segment import BatchState, Place, Segment

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch(id INTEGER PRIMARY KEY, record TEXT NOT NULL, body BLOB, path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside(id INTEGER, kind TEXT, batch INTEGER, record TEXT, reason TEXT, at TEXT);
"""
SCHEMA_VERSION = 2  # 1 had the same tables and no log beside them: whoever knows only that must not open this
_PAGE = 16384  # octets; a usual message fits into one, which takes a third of the writes that 4096 takes
_CHECKPOINT_PAGES = 1000
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)  # say nothing of a file
_ROWS = 32  # rows a statement
_WAL_MAGIC = b"\x37\x7f\x06"  # sqlite.org/fileformat2.html 4.1


@dataclass
class Changes:
    """What goes into one commit. Moves come first: what follows may be about what they bring."""

    moves: list[Place] = field(default_factory=list)
    inserts: list[tuple[Batch, list[Message], Done]] = field(default_factory=list)
    updates: list[tuple[str, int]] = field(default_factory=list)  # record, id
    removed: list[int] = field(default_factory=list)
    removed_batches: list[int] = field(default_factory=list)
    dead_files: list[str] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.inserts or self.rest)

    @property
    def rest(self) -> bool:
        """Whether there is anything but inserts."""
        return bool(self.moves or self.updates or self.removed or self.removed_batches or self.dead_files or self.aside)

    def before(self, later: Changes) -> None:
        """Put what is not an insert in front of later ones."""
        later.moves[:0] = self.moves
        later.updates[:0] = self.updates
        later.removed[:0] = self.removed
        later.removed_batches[:0] = self.removed_batches
        later.dead_files[:0] = self.dead_files
        later.aside[:0] = self.aside


class Database:
    """`moved` is told on the loop of each batch that has come from the log, or that is stuck there."""

    def __init__(
        self,
        file: Path,
        bodies: Bodies,
        *,
        watched: tuple[Path, ...],
        report: Callable[[str], object],
        moved: Callable[[Place], object],
    ) -> None:
        self.file = file
        self._bodies = bodies
        self._report = report
        self._moved = moved
        self._presence = Presence(*watched, file)
        self._wal = file.with_name(f"{file.name}-wal")
        self.committer: Committer[Changes] = Committer(
            str(file), take=self._take, write=self._write, settle=self._settle, report=report
        )
        self.changes = Changes()  # the next ones; who adds to them calls `committer.soon`
        self._connection: sqlite3.Connection | None = None
        self._unburied: dict[Segment, list[int]] = {}  # moved, and not written in the log yet; the committer's

    @property
    def idle(self) -> bool:
        """Whether all that has come is written."""
        return not self.committer.busy and not self.changes

    @property
    def lost(self) -> str:
        """Why nothing is taken any more; empty if all is well."""
        return self._presence.lost

    @property
    def waiting(self) -> int:
        """Removals and updates that are not on disk yet."""
        return len(self.changes.removed) + len(self.changes.updates)

    def open(self) -> None:
        """For the committer. Raises SpoolError, sqlite3.Error."""
        self._connection = connect(self.file)

    def close(self) -> None:
        """After the committer has ended."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self) -> Changes | None:
        changes, self.changes = self.changes, Changes()
        if self.committer.failing and changes.rest and changes.inserts:
            # what may be too much for the disk does not go along with what makes room
            self.changes.inserts, changes.inserts = changes.inserts, []
        return changes or None

    def _settle(self, changes: Changes, error: Exception | None) -> None:
        told = changes.inserts
        if error is not None:
            told = told + self.changes.inserts  # nobody knows how long it takes: their clients come again
            self.changes.inserts = []
            changes.before(self.changes)
        else:
            for place in changes.moves:
                self._moved(place)
        call_all([done for _, _, done in told], error)

    def refuse_all(self, error: Exception) -> None:
        """Answer those that still wait; nothing is written any more."""
        inserts, self.changes.inserts = self.changes.inserts, []
        call_all([done for _, _, done in inserts], error)

    # of the committer -----------------------------------------------------------------------------------------

    def _write(self, changes: Changes) -> None:
        database = self._connection
        assert database is not None
        if self._presence.lost:
            raise SpoolLost(self._presence.lost)
        self._bury()
        if self.committer.failing:
            # room for removals: the log of the database is written back, and used again from its beginning
            database.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._overwrite(database)
        try:
            database.execute("BEGIN IMMEDIATE")
            moved = self._statements(database, changes)
            database.execute("COMMIT")
        except Exception:
            self._roll_back(database)
            self._overwrite(database)
            raise
        self._check_presence()
        self._unburied = moved
        with contextlib.suppress(OSError):  # what is committed is committed; before the next changes it has to be done
            self._bury()
        for name in changes.dead_files:
            self._bodies.drop(name)

    def _bury(self) -> None:
        """Write in the log what has been moved out of it: before the rows change again, for after a crash in between
        the log's would count. Raises OSError where there is no room for it."""
        for segment, numbers in list(self._unburied.items()):
            try:
                segment.bury(numbers)
            except OSError as error:
                if is_full(error):
                    raise
                self._report(f"spool: {segment.done_path}: {error}; after a crash some mail may be delivered twice")
            del self._unburied[segment]

    def _statements(self, database: sqlite3.Connection, changes: Changes) -> dict[Segment, list[int]]:
        """Everything of a transaction but its commit; gives what is done in the log once that has returned."""
        buried: dict[Segment, list[int]] = {}
        for segment, some in groupby(changes.moves, lambda place: place.segment):
            places = list(some)
            try:
                with segment.reader() as file:
                    for place in places:
                        buried.setdefault(segment, []).extend(self._move(database, file, place))
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                for place in places:
                    self._stuck(place, error)
        batches = [(b.id.number, encode_batch(b), None if b.path else b.body, b.path) for b, _, _ in changes.inserts]
        _insert(database, "batch", 4, batches)
        rows = [(m.id.number, b.id.number, encode_message(m)) for b, messages, _ in changes.inserts for m in messages]
        _insert(database, "message", 3, rows)
        if changes.updates:
            database.executemany("UPDATE message SET record = ? WHERE id = ?", changes.updates)
        for aside in changes.aside:
            set_aside(database, aside)
        _delete(database, "message", changes.removed)
        _delete(database, "batch", changes.removed_batches)
        return buried

    def _move(self, database: sqlite3.Connection, file: io.FileIO, place: Place) -> list[int]:
        """Copy a record of the log: its messages, which are done there after the commit."""
        if place.state is BatchState.STUCK:
            return []
        try:
            record, data = place.segment.read_from(file, place)
            gone = place.gone or ()
            insert_record(database, record, data, [row for row in record.messages if row[0] not in gone])
        except DamageError as error:
            self._stuck(place, error)
            return []
        except OSError as error:
            if error.errno in _PASSING:
                raise
            self._stuck(place, error)
            return []
        return [number for number, _ in record.messages]

    def _stuck(self, place: Place, error: Exception) -> None:
        if place.state is not BatchState.STUCK:
            place.state = BatchState.STUCK
            self._report(f"spool: {place.segment.path}: batch {place.number} cannot be read: {error}")

    def _overwrite(self, database: sqlite3.Connection) -> None:
        """After a COMMIT that failed its frames may stand whole in the log, and come back after a crash although they
        were refused. One small write in their place ends that (sqlite.org/fileformat2.html 4.3)."""
        try:
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error:
            return  # the disk takes nothing: it is tried again before anything else is written

    def _check_presence(self) -> None:
        """Raises SpoolLost."""
        self._presence.check(str(self._wal))
        try:
            with self._wal.open("rb", buffering=0) as file:
                begins = file.read(3)
        except OSError:
            return  # that it cannot be opened now says nothing of where it is
        # a log that was cut off and written behind its beginning is as long as before
        if begins and begins != _WAL_MAGIC:
            self._presence.lost = f"{self._wal} was truncated while the server runs"
            raise SpoolLost(self._presence.lost)

    def _roll_back(self, database: sqlite3.Connection) -> None:
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._report(f"spool: {self.file}: rollback failed: {error}")


def connect(file: Path, *, create: bool = False, mode: str = "rw") -> sqlite3.Connection:
    """Opening writes nothing where the database is there: on a full disk it has to succeed. Raises SpoolError,
    sqlite3.Error."""
    address = f"file:{quote(str(file))}?mode={'rwc' if create else mode}"
    database = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
    if mode == "ro":
        return database
    database.execute(f"PRAGMA page_size={_PAGE}")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise SpoolError(f"spool {file}: layout {version} is of another version of Quillon")
    if version < SCHEMA_VERSION:
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    return database


def insert_record(
    database: sqlite3.Connection, record: Record, data: bytes, messages: Sequence[tuple[int, str]]
) -> None:
    """Copy a record of the log, unless the database has it. Raises DamageError where another batch has its number."""
    found = known(database, record)
    if found:
        return
    if found is False:
        raise DamageError(f"another batch of the database has the number {record.number}")
    body = None if record.path else data[record.body : record.end]
    database.execute("INSERT INTO batch VALUES(?,?,?,?)", (record.number, record.batch, body, record.path))
    rows = [(number, record.number, text) for number, text in messages]
    database.executemany("INSERT OR IGNORE INTO message VALUES(?,?,?)", rows)


def known(database: sqlite3.Connection, record: Record) -> bool | None:
    """Whether the database has a batch of the log: None if it has none of that number, False if it is another one."""
    row = database.execute("SELECT record FROM batch WHERE id = ?", (record.number,)).fetchone()
    if row is None:
        return None
    text = row[0].decode("utf-8", "replace") if isinstance(row[0], bytes) else row[0]
    return bool(text == record.batch)


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
