"""Reads the messages of an earlier life out of a spool, in pieces, while the server takes new mail already.

First the log, which is short, then the database as it was when the spool was opened, each in the order of time. A row
that cannot be read is set aside and named, never dropped; one that the database itself cannot read is named and left,
and what is broken in the log is copied. The readers have a connection of their own and may run on any thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quillon.mail.message import Batch, Message
from quillon.spool.aside import Aside
from quillon.spool.database import known
from quillon.spool.log_octets import Broken, DamageError, Record
from quillon.spool.record import RecordError, decode_batch, decode_message
from quillon.spool.segment import Place, Segment

PIECE = 2000  # messages
_ROWS = """
SELECT m.id, m.batch, m.record, b.record, b.path, b.body IS NOT NULL
FROM message m LEFT JOIN batch b ON b.id = m.batch WHERE m.id > ? AND m.id <= ? ORDER BY m.id LIMIT ?
"""
_ROW = _ROWS.replace("m.id > ? AND m.id <= ? ORDER BY m.id LIMIT ?", "m.id = ?")
# batches without a message that are not kept for an entry set aside
_ORPHANS = "SELECT id FROM batch WHERE id <= ? EXCEPT SELECT batch FROM message EXCEPT SELECT batch FROM set_aside"


@dataclass(slots=True)
class Piece:
    """Some of the messages, what is to be set aside, and batches that nobody needs any more."""

    messages: list[Message] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)


@dataclass(slots=True)
class LogPiece:
    """As `Piece`, of one segment. `places` are of batches with their messages in `messages`; `spoiled` of batches whose
    records have to go into the database to be set aside there; `moved` are messages that the database has already.
    `understood` tells that all of the segment has been read, and that it may go when that is done."""

    segment: Segment
    messages: list[Message] = field(default_factory=list)
    places: list[tuple[Place, Batch]] = field(default_factory=list)
    spoiled: list[Place] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    understood: bool = False


class LogRecovery:
    """`database` is for this reader alone. When all is read `names` are the body files that records name, and `whole`
    says that nothing was broken: else there may be others."""

    def __init__(
        self,
        segments: list[Segment],
        database: sqlite3.Connection,
        body_file: Callable[[str], Path],
        report: Callable[[str], object],
    ) -> None:
        self._segments = segments
        self._database = database
        self._body_file = body_file
        self._report = report
        self.names: set[str] = set()
        self.whole = True

    def pieces(self) -> Iterator[LogPiece]:
        """All that lives, at least one piece a segment. A segment that cannot be read at all is named and left."""
        for segment in self._segments:
            piece = LogPiece(segment)
            understood = True
            try:
                for found in segment.live():
                    if isinstance(found, Broken):
                        self.whole = False
                        understood = self._set_aside(segment, found) and understood
                        continue
                    place, record, _ = found
                    self._take(piece, place, record)
                    if len(piece.messages) >= PIECE:
                        yield piece
                        piece = LogPiece(segment)
            except (OSError, DamageError) as error:
                self._report(f"spool: {segment.path} cannot be read: {error}; it is left as it is")
                understood = self.whole = False
            if segment.salvaged:
                self._report(f"spool: parts of {segment.path} cannot be read from the disk; it is left as it is")
                understood = self.whole = False
            piece.understood = understood
            yield piece
        self._database.close()

    def _take(self, piece: LogPiece, place: Place, record: Record) -> None:
        gone = place.gone or ()
        rows = [row for row in record.messages if row[0] not in gone]
        if self._has_come(piece.segment, record):
            # it was moved, and the crash came before that was written here
            piece.moved += [number for number, _ in rows]
            return
        if record.path:
            self.names.add(record.path)
        try:
            if record.path and not self._body_file(record.path).exists():
                raise RecordError(f"its body file {record.path} is missing")
            batch = decode_batch(record.number, record.batch, record.path)
        except (RecordError, OSError) as error:
            piece.spoiled.append(place)
            piece.aside.append(Aside("batch", record.number, record.number, str(error)))
            piece.aside += [Aside("message", n, record.number, "its batch is missing or unreadable") for n, _ in rows]
            return
        batch.left = 0
        for number, text in rows:
            try:
                piece.messages.append(decode_message(number, text, batch))
                batch.left += 1
            except RecordError as error:
                piece.aside.append(Aside("message", number, record.number, str(error)))
                if place not in piece.spoiled:
                    piece.spoiled.append(place)
        batch.place = place
        piece.places.append((place, batch))

    def _has_come(self, segment: Segment, record: Record) -> bool:
        """Whether the database has a batch of the log."""
        try:
            same = known(self._database, record)
        except sqlite3.Error as error:
            self._report(f"spool: whether batch {record.number} of {segment.path} was moved cannot be told: {error}")
            return False
        if same is False:
            self._report(f"spool: batch {record.number} of {segment.path} and of the database are not the same")
        return bool(same)

    def _set_aside(self, segment: Segment, broken: Broken) -> bool:
        """Copy what is no record, for the segment goes with the last of its messages. Gives whether that could be
        done."""
        where = f"octets {broken.start} to {broken.end} of {segment.path}"
        newest = segment is self._segments[-1]
        what = "a write that a crash has broken off, or damage" if newest else "damaged"
        try:
            copy = segment.copy_broken(broken)
            self._report(f"spool: {where} are {what}; they are kept in {copy}")
        except (OSError, DamageError) as error:
            self._report(f"spool: {where} are {what}, and cannot be copied: {error}; the file is left as it is")
            return False
        return True


class Recovery:
    """`database` is for this reader alone. `body_file` finds the file of a large body, `report` gets lines of rows that
    the database cannot read."""

    def __init__(
        self, database: sqlite3.Connection, name: str, body_file: Callable[[str], Path], report: Callable[[str], object]
    ) -> None:
        self._database = database
        self._name = name
        self._body_file = body_file
        self._report = report
        self._last = _number(database, "SELECT max(id) FROM message")
        self._last_batch = _number(database, "SELECT max(id) FROM batch")
        database.text_factory = bytes  # what is no UTF-8 is the matter of its row

    def pieces(self) -> Iterator[Piece]:
        """All that was there when this was made. Raises sqlite3.Error where the whole database is at fault."""
        shared = dict(
            self._database.execute(
                "SELECT batch, count(*) FROM message WHERE id <= ? GROUP BY batch HAVING count(*) > 1", (self._last,)
            )
        )
        open_batches: dict[int, tuple[Batch, int]] = {}  # those with messages to come
        after = 0
        while True:
            rows, after = self._next(after)
            if not rows:
                break
            piece = Piece()
            for row in rows:
                self._take(row, shared, open_batches, piece)
            yield piece
        yield Piece(orphans=[n for (n,) in self._database.execute(_ORPHANS, (self._last_batch,))])
        self._database.close()

    def _take(
        self, row: tuple[Any, ...], shared: dict[int, int], open_batches: dict[int, tuple[Batch, int]], piece: Piece
    ) -> None:
        number, batch_number, record, batch_record, path, has_body = row
        known = open_batches.get(batch_number)
        try:
            count = shared.get(batch_number, 1)
            if known is None:
                known = self._batch(batch_number, batch_record, path, has_body), 0
                known[0].left = count  # from here on whoever uses it counts
            batch, taken = known
            if taken + 1 < count:
                open_batches[batch_number] = (batch, taken + 1)
            else:
                open_batches.pop(batch_number, None)
            piece.messages.append(decode_message(number, _text(record), batch))
        except _BatchError as error:
            piece.aside.append(Aside("batch", batch_number, batch_number, str(error)))
            piece.aside.append(Aside("message", number, batch_number, "its batch is missing or unreadable"))
        except RecordError as error:
            piece.aside.append(Aside("message", number, batch_number, str(error), known[0] if known else None))

    def _batch(self, number: int, record: object, path: object, has_body: object) -> Batch:
        """Raises _BatchError."""
        try:
            if record is None:
                raise RecordError("it is missing")
            name = _octets(path).decode("ascii", "replace")
            try:
                found = not name or self._body_file(name).exists()
            except OSError:
                raise RecordError(f"{name!r:.80} is no name of a body file") from None
            if not found:
                raise RecordError(f"its body file {name} is missing")
            if not name and not has_body:
                raise RecordError("it has no body")
            return decode_batch(number, _text(record), name)
        except RecordError as error:
            raise _BatchError(str(error)) from None

    def _next(self, after: int) -> tuple[list[tuple[Any, ...]], int]:
        """The next rows, and where to go on."""
        try:
            rows = self._database.execute(_ROWS, (after, self._last, PIECE)).fetchall()
            return rows, rows[-1][0] if rows else after
        except sqlite3.DatabaseError:
            return self._one_by_one(after)

    def _one_by_one(self, after: int) -> tuple[list[tuple[Any, ...]], int]:
        """As `_next` where a row, or a page, is broken: what can be read of it."""
        ids = "SELECT id FROM message WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        rows = []
        for (number,) in self._database.execute(ids, (after, self._last, PIECE)).fetchall():
            after = number
            try:
                row = self._database.execute(_ROW, (number,)).fetchone()
            except sqlite3.DatabaseError as error:
                self._report(f"spool: message {number} in {self._name} cannot be read: {error}")
                continue
            if row is not None:
                rows.append(row)
        if not rows and after:
            return ([], after) if after >= self._last else self._next(after)
        return rows, after


class _BatchError(Exception):
    """A batch cannot be read."""


def _number(database: sqlite3.Connection, query: str) -> int:
    return database.execute(query).fetchone()[0] or 0


def _octets(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def _text(value: object) -> str:
    """The text of a record. Raises RecordError."""
    try:
        return _octets(value).decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError("it is no UTF-8") from None
