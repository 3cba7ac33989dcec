"""Entries of a spool that cannot be read: kept, body and all, out of the way of those that can."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from quillon.mail.message import Batch


class Aside(NamedTuple):
    """An entry that cannot be read: `message` or `batch`, its id, that of its batch, and why."""

    kind: str
    number: int
    batch: int
    why: str
    of: Batch | None = None  # the batch, where that could be read


def set_aside(database: sqlite3.Connection, aside: Aside) -> None:
    """Keep an entry that cannot be read, body and all, out of the way of those that can."""
    kind, number, batch, why, _ = aside
    database.execute(
        "INSERT INTO set_aside SELECT ?1, ?2, ?3, record, ?4, datetime('now')"  # noqa: S608 - our names
        f" FROM {kind} WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM set_aside WHERE id = ?1 AND kind = ?2)",
        (number, kind, batch, why),
    )
    if kind == "message":
        database.execute("DELETE FROM message WHERE id = ?", (number,))
