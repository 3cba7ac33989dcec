"""Repairs what can be repaired of a spool that nobody serves, and loses nothing that was readable.

A database with broken pages is copied row by row into a new one, and kept. Entries that were set aside and can be read
now, for the body was restored or this Quillon knows the layout, wait again. Damage of the log is set aside by the next
start, which delivers what is whole; there is nothing to do for it here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quillon.spool.bodies import NAME, make_folder, sync
from quillon.spool.database import connect
from quillon.spool.lock import Lock
from quillon.spool.record import RecordError, decode_batch, decode_message

_TABLES = {"batch": 4, "message": 3, "set_aside": 6}
_DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)


def repair(folder: Path, tell: Callable[[str], object]) -> None:
    """Repair a worker's folder; `tell` gets a line for each thing done. Raises SpoolError where a server has it,
    OSError, sqlite3.Error."""
    lock = Lock(folder, tell)
    lock.take()
    whole = False
    try:
        file = folder / "spool.db"
        lock.check_database(file)
        faults = _faults(file)
        if faults:
            tell(f"{file}: {faults[0]}")
            _rebuild(file, tell)
        _take_back(file, folder / "bodies", tell)
        whole = True
    finally:
        lock.release(in_order=whole)


def _faults(file: Path) -> list[str]:
    database = sqlite3.connect(file)
    try:
        return [words for (words,) in database.execute("PRAGMA quick_check(20)") if words != "ok"]
    except _DAMAGED as error:
        return [str(error)]
    finally:
        database.close()


def _rebuild(file: Path, tell: Callable[[str], object]) -> None:
    """Copy what can be read into a new database, which takes the place of the old one once it is whole."""
    new, old = file.with_name("spool.db.new"), _unused(file.with_name("spool.db.damaged"))
    new.unlink(missing_ok=True)
    source = sqlite3.connect(file)
    source.text_factory = _text
    target = connect(new, create=True)
    target.execute("CREATE TABLE identity(id TEXT)")
    target.execute("BEGIN")
    for table, columns in _TABLES.items():
        marks = ",".join("?" * columns)
        for row in _rows(source, table):
            target.execute(f"INSERT OR IGNORE INTO {table} VALUES({marks})", row)
    with contextlib.suppress(*_DAMAGED):  # the next start gives it the one of the lock
        target.executemany("INSERT INTO identity VALUES(?)", source.execute("SELECT id FROM identity").fetchall())
    target.execute("COMMIT")
    count = target.execute("SELECT count(*) FROM message").fetchone()[0]
    target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    target.close()
    source.close()
    state = os.stat(file)
    os.chmod(new, state.st_mode & 0o777)
    _give(new, state)
    if not file.with_name("log").exists():
        make_folder(file.with_name("log"))  # the layout says that there is one
        _give(file.with_name("log"), state)
    sync(new)
    os.link(file, old)
    wal = file.with_name(f"{file.name}-wal")
    if wal.exists():  # it belongs to the old one, and must not be found beside the new one
        os.link(wal, old.with_name(f"{old.name}-wal"))
        wal.unlink()
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)
    os.replace(new, file)
    sync(file.parent)
    tell(f"{file}: {count} messages were copied into a new database; {old} is as it was")


def _give(path: Path, like: os.stat_result) -> None:
    """Have a file belong to who has the database."""
    os.chown(path, like.st_uid, like.st_gid, follow_symlinks=False)


def _text(octets: bytes) -> str:
    """A text that is no UTF-8 is the matter of whoever reads its row."""
    return octets.decode("utf-8", "replace")


def _rows(database: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """All rows of a table that can be read, page by page from both ends where the middle cannot."""
    for order, edge in (("ASC", ">"), ("DESC", "<")):
        last: int | None = None
        try:
            cursor = database.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {order}")  # noqa: S608 - our names
            for number, *row in cursor:
                last = number
                yield tuple(row)
            return
        except _DAMAGED:
            yield from _beyond(database, table, last, order, edge)


def _beyond(
    database: sqlite3.Connection, table: str, last: int | None, order: str, edge: str
) -> Iterator[tuple[Any, ...]]:
    """Single rows behind the one that could be read last, where their ids can."""
    try:
        where = f"WHERE rowid {edge} {last}" if last is not None else ""
        ids = database.execute(f"SELECT rowid FROM {table} {where} ORDER BY rowid {order}")  # noqa: S608 - our names
        numbers = [number for (number,) in ids]
    except _DAMAGED:
        return
    for number in numbers:
        try:
            row = database.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)).fetchone()  # noqa: S608 - same
        except _DAMAGED:
            continue
        if row is not None:
            yield tuple(row)


def _unused(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")


def _take_back(file: Path, bodies: Path, tell: Callable[[str], object]) -> None:
    """Have entries wait again that were set aside and can be read."""
    database = connect(file)
    database.text_factory = _text
    database.execute("BEGIN IMMEDIATE")
    rows = database.execute("SELECT rowid, id, batch, record FROM set_aside WHERE kind = 'message'").fetchall()
    for row, number, batch, record in rows:
        if _readable(database, bodies, number, batch, record):
            database.execute("INSERT OR IGNORE INTO message VALUES(?,?,?)", (number, batch, record))
            database.execute("DELETE FROM set_aside WHERE rowid = ?", (row,))
            database.execute("DELETE FROM set_aside WHERE kind = 'batch' AND id = ?", (batch,))
            tell(f"{file}: message {number}, which was set aside, waits again")
    database.execute("COMMIT")
    database.close()


def _readable(database: sqlite3.Connection, bodies: Path, number: int, batch: int, record: str) -> bool:
    found = database.execute("SELECT record, path, body IS NOT NULL FROM batch WHERE id = ?", (batch,)).fetchone()
    if found is None:
        return False
    text, path, has_body = found
    try:
        decode_message(number, record, decode_batch(batch, text, path))
    except RecordError:
        return False
    return bool(NAME.fullmatch(path) and (bodies / path).exists()) if path else bool(has_body)
