"""The spool of one worker: a log for what is young, a database for what waits, a folder for large bodies.

`insert` puts a batch into the log (`log.py`), where most are done within seconds. The first change of a message that
stays moves its batch into the database (`database.py`), as does a log that gets long. Both write on threads of their
own; a caller is told on the event loop, after the octets are synced: that, and nothing before, is the moment it is
ours. An insert that fails is told so and leaves nothing behind; removals and updates that fail are tried again, for the
worst they can do is a second delivery.

Layout below `folder`: `log/`, `spool.db`, `bodies/`, `lock`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quillon.mail.message import Batch, Message
from quillon.net.histogram import Histogram
from quillon.spool.aside import Aside
from quillon.spool.bodies import Bodies, make_folder, sync
from quillon.spool.committer import Done, call_all
from quillon.spool.database import SCHEMA_VERSION, Database, connect, insert_record
from quillon.spool.errors import SpoolError, SpoolLost, is_full
from quillon.spool.lock import Lock
from quillon.spool.log import Log
from quillon.spool.log_octets import Broken, DamageError
from quillon.spool.record import encode_message
from quillon.spool.recovery import LogPiece, LogRecovery, Piece, Recovery
from quillon.spool.segment import BatchState, Place, Segment, segments

_SLICE = 200  # batches that are moved in one commit


class Store:
    """`mode` is the file mode of what is created. `report` gets one line for each entry set aside or write failed."""

    def __init__(self, folder: Path, mode: int, report: Callable[[str], object]) -> None:
        self.folder = folder
        self.bodies = Bodies(folder / "bodies", mode, report)
        self._mode = mode
        self._report = report
        self._lock = Lock(folder, report)
        file = folder / "spool.db"
        watched = (folder, self._lock.path, self.bodies.folder)
        self._database = Database(file, self.bodies, watched=watched, report=report, moved=self._moved)
        self._log = Log(folder / "log", self.bodies, mode, watched=(*watched, file), report=report, settled=self._tidy)
        self._kept: set[int] = set()  # batches that an entry set aside still needs
        self._recovery: Recovery | None = None  # as long as what was there is not read
        self._log_recovery: LogRecovery | None = None
        self._found_bodies: list[str] = []  # those that were there at the start
        self._fresh: set[int] = set()  # batches that came into the database meanwhile
        self.newest = 0  # a second behind that of every id that is here
        self._keeps_bodies = False  # for what names them could not be read
        self._closed = False
        self._syncing = 0  # large bodies that are on their way to the disk
        self._moving = 0
        self._syncers = ThreadPoolExecutor(2, thread_name_prefix="spool-sync")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="spool-read")
        self._reader: sqlite3.Connection | None = None

    # start and stop -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock and open the spool; what it holds is read by `recovered`. Raises SpoolError."""
        file = self._database.file
        try:
            self._take_lock()
            found = self._log.create()
            with connect(file, create=True) as database:
                self._lock.identify(database, file)
                aside = database.execute("SELECT batch FROM set_aside").fetchall()
                self._kept.update(number for (number,) in aside)
                ids = "SELECT max(id) FROM (SELECT max(id) id FROM batch UNION ALL SELECT max(id) FROM message)"
                self.newest = _newest(database.execute(ids).fetchone()[0], found)
            if aside:
                self._report(f"spool: {len(aside)} entries that could not be read are set aside in {file}")
            self._found_bodies = self.bodies.names()
            self._keeps_bodies = self._keeps_bodies or any(self._log.folder.glob("*.broken-*"))
            self._log_recovery = LogRecovery(found, connect(file), self.bodies.file, self._report)
            self._recovery = Recovery(connect(file), str(file), self.bodies.file, self._report)
            database.close()  # not before there is another one: with the last one its log would go
            os.chmod(file, self._mode)
        except OSError as error:
            raise SpoolError(f"spool {self.folder}: {error.strerror}", may_heal=is_full(error)) from None
        except sqlite3.Error as error:
            text = f"spool {file}: {error}; nothing was changed"
            raise SpoolError(text, may_heal=is_full(error)) from None

    def _take_lock(self) -> None:
        """Have the spool alone, and see that what belongs to it is there. Raises SpoolError, OSError, sqlite3.Error."""
        if self._lock.taken:
            return
        file = self._database.file
        self.bodies.create()
        self._lock.take()
        try:
            self._lock.check_database(file)
            if file.exists():
                _check_log(file)
            make_folder(self._log.folder)
        except BaseException:
            self._lock.release(in_order=False)  # lest it be taken for looked at
            raise

    def start(self) -> None:
        """Start the committers; called on the event loop that callbacks are to run on. Raises SpoolError."""
        try:
            self._database.open()
        except sqlite3.Error as error:
            raise SpoolError(f"spool {self._database.file}: {error}", may_heal=is_full(error)) from None
        self._lock.opened()
        self._database.committer.start()
        self._log.committer.start()

    async def close(self, patience: float = 10.0) -> None:
        """Write what is waiting, for so many seconds at most, and let go."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        self._log.sync()
        while not self.idle and loop.time() < end:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.005)
        if self.waiting:
            self._report(f"spool: {self.folder}: {self.waiting} changes of messages could not be written at the end")
        self._closed = True
        await self._log.committer.stop()
        await self._database.committer.stop()
        self._log.refuse_all(SpoolLost("the spool is closed"))
        self._database.refuse_all(SpoolLost("the spool is closed"))
        if not self.waiting:
            self._lock.closing()
        self._database.close()
        self._log.release()
        self.release()

    def release(self) -> None:
        """Let go of the lock, and of what reads."""
        self._lock.release()
        self._syncers.shutdown(wait=True)
        self._readers.shutdown(wait=True)

    @property
    def idle(self) -> bool:
        """Whether all that has come is written."""
        return self._log.idle and self._database.idle and not self._syncing

    @property
    def failing(self) -> str:
        """Why something cannot be written; empty if all can."""
        return self._lost or self._log.failing or self._database.committer.failing

    def took(self) -> dict[str, Histogram]:
        """How long it takes until changes are on disk, by tier."""
        return {"log": self._log.committer.took, "database": self._database.committer.took}

    @property
    def waiting(self) -> int:
        """Removals and updates that are not on disk yet."""
        return self._log.waiting + self._database.waiting

    @property
    def _lost(self) -> str:
        return self._log.lost or self._database.lost

    # what was there -------------------------------------------------------------------------------------------

    async def recovered(self) -> AsyncIterator[list[Message]]:
        """The messages of an earlier life, in pieces, while new ones come: after `start`. They are read off the event
        loop. Raises sqlite3.Error where the database cannot be read at all."""
        try:
            async for messages in self._read_all():
                yield messages
        finally:
            self._recovery = self._log_recovery = None
            self._fresh.clear()
            self._tidy()

    async def _read_all(self) -> AsyncIterator[list[Message]]:
        loop = asyncio.get_running_loop()
        assert self._recovery is not None
        assert self._log_recovery is not None
        with ThreadPoolExecutor(1, thread_name_prefix="spool-recover") as reader:
            young = self._log_recovery.pieces()
            while (piece := await loop.run_in_executor(reader, next, young, None)) is not None:
                self._register(piece)
                yield piece.messages
            self._log.look_after_all()
            old = self._recovery.pieces()
            while (rows := await loop.run_in_executor(reader, next, old, None)) is not None:
                self._take_note(rows)
                yield [message for message in rows.messages if message.batch.id.number not in self._fresh]
            if self._log_recovery.whole and not self._keeps_bodies:
                await loop.run_in_executor(reader, self._sweep, self._log_recovery.names)

    def _register(self, piece: LogPiece) -> None:
        """Go on with a part of the log where the life before has ended."""
        places = [place for place, _ in piece.places] + piece.spoiled
        self._log.register(piece.segment, places, held=not piece.understood)
        for place in piece.spoiled:
            self._move(place)
        for aside in piece.aside:
            self._name_aside(aside)
        self._database.changes.aside += piece.aside
        if piece.moved:
            self._log.bury_all(piece.segment, piece.moved)
        if piece.aside:
            self._database.committer.soon()

    def _take_note(self, piece: Piece) -> None:
        for aside in piece.aside:
            self._name_aside(aside)
        changes = self._database.changes
        changes.aside += piece.aside
        changes.removed_batches += [number for number in piece.orphans if number not in self._fresh]
        self._database.committer.soon()

    def _name_aside(self, aside: Aside) -> None:
        self._kept.add(aside.batch)
        if aside.of is not None:
            aside.of.left -= 1
        self._report(f"spool: {aside.kind} {aside.number} is set aside in {self._database.file}: {aside.why}")

    def _sweep(self, named: set[str]) -> None:
        """Body files that were there at the start and that no record names were never acknowledged."""
        try:
            database = connect(self._database.file)
            for name in self._found_bodies:
                number = int(name) if name.isascii() and name.isdigit() and int(name) < 1 << 63 else -1
                row = database.execute("SELECT 1 FROM batch WHERE id = ? AND path = ?", (number, name)).fetchone()
                if row is None and name not in named:
                    (self.bodies.folder / name).unlink(missing_ok=True)
            database.close()
        except (OSError, sqlite3.Error) as error:
            self._report(f"spool: {self.bodies.folder} cannot be swept: {error}")
        self._found_bodies = []

    def adopt(self, other: Path) -> int:
        """Take over the messages of a spool that no worker owns any more; call before `open`. Gives their number.

        Rows and records are copied and committed here before they are removed there, so a crash in between loses
        nothing. What cannot be read stays there. Raises SpoolError.
        """
        lock, done = Lock(other, self._report), False
        try:
            self._take_lock()
            lock.take()
            theirs = Bodies(other / "bodies", self._mode, self._report)
            if not (other / "spool.db").exists():
                if any(other.glob("spool.db.*")) or any(other.glob("bodies/*")) or any(other.glob("log/*")):
                    raise SpoolError(f"spool {other / 'spool.db'} is missing, and mail is there: restore it")
                return 0
            _check_log(other / "spool.db")
            self.bodies.link_from(theirs)
            connect(other / "spool.db").close()
            with connect(self._database.file, create=True) as database:
                database.execute("ATTACH DATABASE ? AS other", (str(other / "spool.db"),))
                count, left_rows = _take_rows(database)
                if left_rows:
                    self._report(
                        f"spool: {left_rows} messages of {other / 'spool.db'} have no batch, or that of another"
                    )
                taken, left = self._take_log(database, other / "log")
                kept = {str(path) for (path,) in database.execute("SELECT path FROM other.batch")}
            database.close()
            for segment, messages in taken.items():
                if segment in left:
                    segment.bury(messages)  # lest it be taken again
                    segment.sync_done()
                    segment.release()
                else:
                    segment.remove()
            if taken:
                sync(other / "log")
            if left:
                self._keeps_bodies = True  # what cannot be read may name one
            else:
                theirs.keep(kept)
            done = True
        except (OSError, sqlite3.Error) as error:
            raise SpoolError(f"spool {other} cannot be taken over: {error}") from None
        finally:
            lock.release(in_order=done)
        return count + sum(map(len, taken.values()))

    def _take_log(self, database: sqlite3.Connection, folder: Path) -> tuple[dict[Segment, list[int]], set[Segment]]:
        """Copy what lives of a log into the database: the messages of each segment, and segments that have to stay for
        what cannot be read of them."""
        taken: dict[Segment, list[int]] = {}
        left: set[Segment] = set()
        database.execute("BEGIN IMMEDIATE")
        for segment in segments(folder) if folder.exists() else ():
            messages = taken[segment] = []
            try:
                for found in segment.live():
                    if isinstance(found, Broken):
                        self._report(f"spool: octets {found.start} to {found.end} of {segment.path} are no record")
                        left.add(segment)
                        continue
                    place, record, data = found
                    rows = [row for row in record.messages if row[0] not in (place.gone or ())]
                    try:
                        insert_record(database, record, data, rows)
                        messages += [number for number, _ in rows]
                    except DamageError as error:
                        self._report(f"spool: batch {record.number} of {segment.path}: {error}")
                        left.add(segment)
            except (OSError, DamageError) as error:
                self._report(f"spool: {segment.path} cannot be read to its end: {error}")
                left.add(segment)
            if segment.salvaged:
                left.add(segment)
            if segment in left:
                self._report(f"spool: what can be read of {segment.path} was taken over, and it is left there")
        database.execute("COMMIT")
        return taken, left

    # writing --------------------------------------------------------------------------------------------------

    def insert(self, batch: Batch, messages: list[Message], done: Done) -> None:
        """Store a batch; `done(None)` is called on the loop once it is on disk, or `done(error)` if it is not."""
        loop = asyncio.get_running_loop()
        if self._lost or self._closed:
            loop.call_soon(call_all, [done], SpoolLost(self._lost or "the spool is closed"))
        elif batch.path:
            # a large file takes its time, and nobody else has to wait for that
            self._syncing += 1
            synced = loop.run_in_executor(self._syncers, self.bodies.sync, batch.path)
            synced.add_done_callback(lambda answer: self._synced(batch, messages, done, answer))
        else:
            self._insert(batch, messages, done)

    def _synced(self, batch: Batch, messages: list[Message], done: Done, answer: asyncio.Future[None]) -> None:
        self._syncing -= 1
        error = None if answer.cancelled() else answer.exception()
        if answer.cancelled():
            call_all([done], SpoolLost("the spool was closed"))
        elif self._closed:
            call_all([done], SpoolLost("the spool is closed"))
        elif isinstance(error, Exception):
            self._report(f"spool: {self.bodies.folder / batch.path}: {error}")
            call_all([done], error)
        else:
            self._insert(batch, messages, done)

    def _insert(self, batch: Batch, messages: list[Message], done: Done) -> None:
        batch.left = len(messages)
        if not self._log.is_full:
            self._log.insert(batch, messages, done)
            return
        self._note_fresh(batch.id.number)
        self._database.changes.inserts.append((batch, messages, done))
        self._database.committer.soon()

    def update(self, message: Message) -> None:
        """Write the retry state of a message, so that a restart does not begin anew."""
        place = _place(message.batch)
        if place is not None and place.state is BatchState.LOG:
            self._move(place)
        self._database.changes.updates.append((encode_message(message), message.id.number))
        self._database.committer.soon()

    def remove(self, message: Message) -> None:
        """A message is done; with the last one its batch and body go."""
        batch = message.batch
        batch.left -= 1
        place = _place(batch)
        if place is not None:
            place.over = batch.left == 0
            self._log.bury(place, message.id.number)
        if place is None or place.state is BatchState.MOVING:
            self._remove_from_database(message)
        elif batch.left == 0 and batch.id.number not in self._kept:
            self._log.forget(place, batch.path)

    def _remove_from_database(self, message: Message) -> None:
        batch, changes = message.batch, self._database.changes
        changes.removed.append(message.id.number)
        if batch.left == 0 and batch.id.number not in self._kept:
            changes.removed_batches.append(batch.id.number)
            if batch.path:
                changes.dead_files.append(batch.path)
        self._database.committer.soon()

    def _move(self, place: Place) -> None:
        """Have a batch in the database instead of the log."""
        place.state = BatchState.MOVING
        self._moving += 1
        self._note_fresh(place.number)
        self._database.changes.moves.append(place)
        self._database.committer.soon()

    def _moved(self, place: Place) -> None:
        self._moving -= 1
        if place.state is BatchState.MOVING:
            place.state = BatchState.MOVED
            self._log.forget(place)
            self._log.sync_soon()
        elif place.over:
            self._log.forget(place)
        if not self._moving:
            self._tidy()

    def _tidy(self) -> None:
        """Move the oldest batches on where the log has become long, some at a time."""
        if not self._moving and self._recovery is None and not self._database.committer.failing:
            for place in self._log.to_be_moved(_SLICE):
                self._move(place)

    def _note_fresh(self, number: int) -> None:
        if self._recovery is not None:
            self._fresh.add(number)

    # bodies ---------------------------------------------------------------------------------------------------

    def body_path(self, batch: Batch) -> Path:
        """Where the file of a large body lies."""
        return self.bodies.file(batch.path)

    async def body_or_nothing(self, batch: Batch, limit: int) -> bytes:
        """Read a body for a notification, so many octets of it (0: all); empty if it cannot be read, which is
        reported."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._read_body, batch, limit) or b""
        except (OSError, sqlite3.Error, TypeError, DamageError) as error:
            self._report(f"spool: cannot read the body of {batch.id}: {error}")
            return b""

    async def body(self, batch: Batch) -> bytes | None:
        """Read a body that is not resident; None if the spool does not have it. Raises OSError, sqlite3.Error,
        DamageError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_body, batch)

    def _read_body(self, batch: Batch, limit: int = 0) -> bytes | None:
        if batch.path:
            try:
                with self.bodies.file(batch.path).open("rb") as file:
                    return file.read(limit or -1)
            except FileNotFoundError:
                return None
        place = _place(batch)
        if place is not None:
            try:
                record, data = place.segment.read(place)
                return data[record.body :][: limit or None]
            except FileNotFoundError:
                pass  # it has been moved just now
        if self._reader is None:
            self._reader = connect(self._database.file)
        row = self._reader.execute("SELECT body FROM batch WHERE id = ?", (batch.id.number,)).fetchone()
        return None if row is None else bytes(row[0])[: limit or None]


def _place(batch: Batch) -> Place | None:
    """Where a batch lies in the log, if it does."""
    place = batch.place
    return place if isinstance(place, Place) and place.state is not BatchState.MOVED else None


def _newest(number: int | None, found: list[Segment]) -> int:
    """A second behind that of the newest id in a spool: in the database, or by the last write to the log. What a clock
    far in the future has written counts no more than a year."""
    written = [int(segment.path.stat().st_mtime) + 1 for segment in found]
    return min(max([((number or 0) >> 32) + 1, *written]), int(time.time()) + 366 * 86400)


def _check_log(file: Path) -> None:
    """A log that has gone is not begun anew without a word. Raises SpoolError, OSError, sqlite3.Error."""
    folder = file.with_name("log")
    if folder.exists():
        return
    database = connect(file, mode="ro")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    database.close()
    if version == SCHEMA_VERSION:
        raise SpoolError(
            f"spool {folder} is missing, and was there before: restore it, or make an empty folder of that name to"
            " begin anew without the mail that it held"
        )


def _take_rows(database: sqlite3.Connection) -> tuple[int, int]:
    """Copy all rows of the database `other`, then delete there what is here: how many messages came, and how many stay
    because a batch of their number is another one, or none is there."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO batch SELECT * FROM other.batch WHERE id NOT IN (SELECT id FROM main.batch)")
    came = database.execute(
        "INSERT INTO message SELECT m.* FROM other.message m JOIN other.batch o ON o.id = m.batch"
        " JOIN main.batch b ON b.id = o.id AND b.record = o.record WHERE m.id NOT IN (SELECT id FROM main.message)"
    ).rowcount
    database.execute("INSERT INTO set_aside SELECT * FROM other.set_aside")
    database.execute("COMMIT")  # here first: a crash between the two has them twice, and not nowhere
    database.execute("DELETE FROM other.set_aside")
    for table in ("message", "batch"):
        here = f"WHERE (id, record) IN (SELECT id, record FROM main.{table})"  # noqa: S608 - our names
        database.execute(f"DELETE FROM other.{table} {here}")  # noqa: S608 - our names
    left = database.execute("SELECT count(*) FROM other.message").fetchone()[0]
    return came, left
