"""Looks into a spool without changing it, whether or not a server runs: what waits, one message whole, and what is
wrong.

The database is opened read-only; SQLite lets readers in beside the server's writer. The log is read first: what is
moved meanwhile is found in both, never in none, and told once.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from quillon.mail.message import Message, MessageId
from quillon.spool import bodies
from quillon.spool.log_octets import Broken, DamageError
from quillon.spool.record import RecordError, decode_batch, decode_message
from quillon.spool.segment import Place, Segment, segments

_ROWS = """
SELECT m.id, m.batch, m.record, b.record, b.path, b.body IS NOT NULL
FROM message m LEFT JOIN batch b ON b.id = m.batch ORDER BY m.id
"""


class SpoolRow(NamedTuple):
    """A message as a spool has it: ids, records, the name of a body file; `place` where it is in the log."""

    number: int
    batch: int
    record: str
    batch_record: str | None
    path: str | None
    has_body: bool
    place: Place | None = None


class SpoolFault(NamedTuple):
    """Something that is wrong in a spool: the file, and what."""

    file: str
    words: str


class FoundMessage(NamedTuple):
    """A message, and the folder of the worker that has it."""

    message: Message
    folder: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which messages: parts of sender and recipient, a destination; empty for all."""

    sender: str = ""
    recipient: str = ""
    domain: str = ""
    id: str = ""

    def matches(self, message: Message) -> bool:
        return (
            self.sender.lower() in str(message.batch.sender).lower()
            and self.recipient.lower() in str(message.recipient).lower()
            and self.domain.lower() in ("", message.destination.lower(), message.recipient.domain.lower())
            and self.id in ("", str(message.id), str(message.batch.id))
        )


class Spool:
    """All workers' spools below SpoolBase."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def folders(self) -> list[Path]:
        """The workers' folders that hold a database."""
        return sorted(folder for folder in self.base.glob("worker-*") if (folder / "spool.db").exists())

    def messages(self, wanted: Wanted) -> Iterator[FoundMessage]:
        """Messages that are wanted, oldest first in each folder. What cannot be read is left out: `faults` names it.
        Raises sqlite3.Error, OSError."""
        for folder in self.folders():
            for row in rows(folder):
                message = _message(row)
                if message is not None and wanted.matches(message):
                    yield FoundMessage(message, folder)

    def body(self, found: FoundMessage) -> bytes:
        """A message as it will be sent. Raises sqlite3.Error, OSError; FileNotFoundError where the spool has it no
        more."""
        batch = found.message.batch
        if batch.path:
            if not bodies.NAME.fullmatch(batch.path):
                raise FileNotFoundError(f"{batch.path!r:.80} is no name of a body file")
            return (found.folder / "bodies" / batch.path).read_bytes()
        if isinstance(batch.place, Place):
            try:
                record, data = batch.place.segment.read(batch.place)
                return data[record.body :]
            except (FileNotFoundError, DamageError):
                pass  # it has been moved into the database, or is done
        with _reading(found.folder) as database:
            row = database.execute("SELECT body FROM batch WHERE id = ?", (batch.id.number,)).fetchone()
        database.close()
        if row is None or row[0] is None:
            raise FileNotFoundError(f"{batch.id} has left the spool")
        return bytes(row[0])

    def faults(self) -> Iterator[SpoolFault]:
        """What is wrong: pages that SQLite finds broken, damage in the log, records that cannot be read, bodies that
        are missing or that nobody names, entries that were set aside. Raises sqlite3.Error, OSError."""
        for folder in self.folders():
            yield from _faults_of_log(folder / "log")
            try:
                yield from _faults_of_rows(folder)
            except sqlite3.DatabaseError as error:
                yield SpoolFault(
                    str(folder / "spool.db"), f"{error}; what can be read of it `quillon spool repair` copies"
                )


def rows(folder: Path) -> Iterator[SpoolRow]:
    """All messages of one worker's spool, the oldest first. Raises sqlite3.Error, OSError."""
    young = sorted(_rows_of_log(folder / "log"), key=lambda row: row.number)
    with _reading(folder) as database:
        last = -1
        for row in heapq.merge(map(SpoolRow._make, _rows_of(database)), young, key=lambda row: row.number):
            if row.number != last:
                yield row
            last = row.number
    database.close()


def _rows_of(database: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    for row in database.execute(_ROWS):
        yield (*row, None)


def _segments(folder: Path) -> list[Segment]:
    try:
        return segments(folder)
    except FileNotFoundError:
        return []  # a spool of the first layout


def _rows_of_log(folder: Path) -> Iterator[SpoolRow]:
    for segment in _segments(folder):
        try:
            for found in segment.live():
                if isinstance(found, Broken):
                    continue
                place, record, _ = found
                for number, text in record.messages:
                    if number not in (place.gone or ()):
                        yield SpoolRow(number, record.number, text, record.batch, record.path, not record.path, place)
        except (FileNotFoundError, DamageError):
            continue  # it has gone meanwhile; of damage `faults` tells


def _faults_of_rows(folder: Path) -> Iterator[SpoolFault]:
    """What is wrong with the database and with messages of either tier. Raises sqlite3.DatabaseError where pages are
    broken."""
    file = str(folder / "spool.db")
    with _reading(folder) as database:
        for (words,) in database.execute("PRAGMA quick_check(20)"):
            if words != "ok":
                yield SpoolFault(file, str(words))
        for kind, number, reason, at in database.execute("SELECT kind, id, reason, at FROM set_aside"):
            yield SpoolFault(file, f"{kind} {number} was set aside at {at}: {reason}")
        named = {path for (path,) in database.execute("SELECT path FROM batch WHERE path != ''")}
    database.close()
    for row in rows(folder):
        named.add(row.path)
        if words := _fault(row, folder):
            where = str(row.place.segment.path) if row.place is not None else file
            yield SpoolFault(where, f"message {MessageId.from_number(row.number)}: {words}")
    for body in sorted((folder / "bodies").glob("*")):
        if body.name not in named:
            yield SpoolFault(str(body), "no message has this body")


def _faults_of_log(folder: Path) -> Iterator[SpoolFault]:
    for segment in _segments(folder):
        try:
            for found in segment.live():
                if isinstance(found, Broken):
                    yield SpoolFault(str(segment.path), f"octets {found.start} to {found.end} are no record")
        except DamageError as error:
            yield SpoolFault(str(segment.path), str(error))
        except FileNotFoundError:
            continue
    for copy in sorted(folder.glob("*.broken-*")):
        yield SpoolFault(str(copy), f"{copy.stat().st_size} octets that were damaged are kept here")


def _reading(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(str(folder / 'spool.db'))}?mode=ro", uri=True, timeout=10)
    database.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")
    return database


def _message(row: SpoolRow) -> Message | None:
    try:
        batch = decode_batch(row.batch, row.batch_record or "", row.path or "")
        batch.place = row.place
        return decode_message(row.number, row.record, batch)
    except (RecordError, TypeError):
        return None


def _fault(row: SpoolRow, folder: Path) -> str:
    """Why a message cannot be delivered; empty if nothing is wrong with it."""
    if row.batch_record is None or row.path is None:
        return "its batch is missing"
    try:
        decode_message(row.number, row.record, decode_batch(row.batch, row.batch_record, row.path))
    except (RecordError, TypeError) as error:
        return str(error)
    if not row.path:
        return "" if row.has_body else "it has no body"
    if not bodies.NAME.fullmatch(row.path):
        return f"{row.path!r:.80} is no name of a body file"
    return "" if (folder / "bodies" / row.path).exists() else f"its body {row.path} is missing"
