"""Looks into a spool without changing it, whether or not a server runs: what waits, one message whole, and what is
wrong.

The database is opened read-only; SQLite lets readers in beside the server's writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from quillon.mail.message import Message, MessageId
from quillon.spool.record import RecordError, decode_batch, decode_message
from quillon.spool.store import BODY_NAME

_ROWS = """
SELECT m.id, m.batch, m.record, b.record, b.path, length(b.body)
FROM message m LEFT JOIN batch b ON b.id = m.batch
"""


class Fault(NamedTuple):
    """Something that is wrong in a spool: the file, and what."""

    file: str
    words: str


class Found(NamedTuple):
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

    def messages(self, wanted: Wanted) -> Iterator[Found]:
        """Messages that are wanted, oldest first in each folder. What cannot be read is left out: `faults` names it.
        Raises sqlite3.Error, OSError."""
        for folder in self.folders():
            with _reading(folder) as database:
                for row in database.execute(f"{_ROWS} ORDER BY m.id"):
                    message = _message(row)
                    if message is not None and wanted.matches(message):
                        yield Found(message, folder)
            database.close()

    def body(self, found: Found) -> bytes:
        """A message as it will be sent. Raises sqlite3.Error, OSError; FileNotFoundError where the spool has it no
        more."""
        batch = found.message.batch
        if batch.path:
            return (found.folder / "bodies" / batch.path).read_bytes()
        with _reading(found.folder) as database:
            row = database.execute("SELECT body FROM batch WHERE id = ?", (batch.id.number,)).fetchone()
        database.close()
        if row is None or row[0] is None:
            raise FileNotFoundError(f"{batch.id} has left the spool")
        return bytes(row[0])

    def faults(self) -> Iterator[Fault]:
        """What is wrong: pages that SQLite finds broken, records that cannot be read, bodies that are missing or that
        nobody names, entries that were set aside. Raises sqlite3.Error, OSError."""
        for folder in self.folders():
            file = str(folder / "spool.db")
            with _reading(folder) as database:
                for (words,) in database.execute("PRAGMA quick_check(20)"):
                    if words != "ok":
                        yield Fault(file, str(words))
                for row in database.execute(_ROWS):
                    words = _fault(row, folder)
                    if words:
                        yield Fault(file, f"message {MessageId.from_number(row[0])}: {words}")
                query = "SELECT kind, id, reason, at FROM set_aside"
                for kind, number, reason, at in database.execute(query):
                    yield Fault(file, f"{kind} {number} was set aside at {at}: {reason}")
                named = {path for (path,) in database.execute("SELECT path FROM batch WHERE path != ''")}
            database.close()
            for body in sorted((folder / "bodies").glob("*")):
                if body.name not in named:
                    yield Fault(str(body), "no message has this body")


def _reading(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(str(folder / 'spool.db'))}?mode=ro", uri=True, timeout=10)
    database.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")
    return database


def _message(row: tuple[Any, ...]) -> Message | None:
    number, batch, record, batch_record, path, _ = row
    try:
        return decode_message(number, record, decode_batch(batch, batch_record, path))
    except (RecordError, TypeError):
        return None


def _fault(row: tuple[Any, ...], folder: Path) -> str:
    """Why a message cannot be delivered; empty if nothing is wrong with it."""
    number, batch, record, batch_record, path, length = row
    if batch_record is None:
        return "its batch is missing"
    try:
        decode_message(number, record, decode_batch(batch, batch_record, path))
    except (RecordError, TypeError) as error:
        return str(error)
    if not path:
        return "" if length is not None else "it has no body"
    if not BODY_NAME.fullmatch(path):
        return f"{path!r:.80} is no name of a body file"
    return "" if (folder / "bodies" / path).exists() else f"its body {path} is missing"
