"""The file `lock` of a spool: who has it is alone, and it says which database belongs here and how it was left.

Raises SpoolError where the spool cannot be used.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path

from quillon.spool.errors import SpoolError

_MARK = "quillon-spool"


class Lock:
    """`report` takes a line."""

    def __init__(self, folder: Path, report: Callable[[str], object]) -> None:
        self.path = folder / "lock"
        self._folder = folder
        self._report = report
        self._file = -1
        self._identity = ""
        self.was_closed = True  # whether whoever had it before came to an end in order

    @property
    def taken(self) -> bool:
        """Whether it is ours."""
        return self._file >= 0

    def take(self) -> None:
        """Have it alone. Raises SpoolError, OSError."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            self._file = -1
            raise SpoolError(f"spool {self._folder} is in use by another process") from None
        known = os.pread(self._file, 200, 0).decode("ascii", "replace").split()
        if len(known) >= 2 and known[0] == _MARK:
            self._identity = known[1]
            self.was_closed = known[2:3] != ["open"]

    def check_database(self, file: Path) -> None:
        """A spool whose database has gone, or is another one, is not begun anew without a word. Raises SpoolError."""
        if not self._identity:
            return
        if not file.exists() or not file.stat().st_size:
            raise SpoolError(
                f"spool {file} is missing, or empty, and was there before: restore it, or remove {self.path} to begin"
                " anew without the mail that it held"
            )
        if not self.was_closed and not file.with_name(f"{file.name}-wal").exists():
            self._report(
                f"spool: {file}-wal is missing although the spool was not closed: mail of its last minutes may be lost"
            )

    def identify(self, database: sqlite3.Connection, file: Path) -> None:
        """Give database and lock the same name. Raises SpoolError."""
        database.execute("CREATE TABLE IF NOT EXISTS identity(id TEXT)")
        row = database.execute("SELECT id FROM identity").fetchone()
        if row is None:
            self._identity = self._identity or secrets.token_hex(16)
            database.execute("INSERT INTO identity VALUES(?)", (self._identity,))
        elif self._identity and row[0] != self._identity:
            raise SpoolError(
                f"spool {file} is that of another spool: restore the right one, or remove {self.path} to use it"
            )
        else:
            self._identity = str(row[0])

    def opened(self) -> None:
        """The log of the database is there from now on, until `closing`."""
        self._mark("open")

    def closing(self) -> None:
        """All is written; the log of the database may go."""
        self._mark("closed")

    def release(self, *, in_order: bool = True) -> None:
        """Let go of it."""
        if self._file >= 0:
            if in_order:
                self.closing()
            os.close(self._file)
            self._file = -1

    def _mark(self, state: str) -> None:
        if self._identity:
            os.pwrite(self._file, f"{_MARK} {self._identity} {state:6}\n".encode(), 0)
