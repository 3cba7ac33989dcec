"""What goes wrong with a spool."""

from __future__ import annotations

import errno
import sqlite3


class SpoolError(Exception):
    """The spool cannot be used. The message names the file and what is wrong; `may_heal` tells that waiting helps, as
    for space."""

    def __init__(self, text: str, *, may_heal: bool = False) -> None:
        super().__init__(text)
        self.may_heal = may_heal


class SpoolLost(Exception):
    """The files of the spool are not those that it was opened with: nothing more is taken."""


def is_full(error: BaseException) -> bool:
    """Whether it is for want of room, or of leave to write, that something was not written."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) or "full" in str(error)
