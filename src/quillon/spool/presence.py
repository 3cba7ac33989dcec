"""Whether the files of a spool are those that it was opened with. Looked at after each commit, before anybody is
told."""

from __future__ import annotations

import os
from pathlib import Path

from quillon.spool.errors import SpoolLost


class Presence:
    """`lost` says why nothing is taken any more; empty as long as all is in its place."""

    def __init__(self, *watched: Path) -> None:
        self._watched = [str(path) for path in watched]  # a Path costs more to look up than the look
        self._known: dict[str, tuple[int, int, int]] = {}  # device, inode, least size
        self.lost = ""

    def check(self, *growing: str) -> None:
        """Compare what is watched, and files that never shrink, with what they were. Raises SpoolLost."""
        if not self.lost:
            self.lost = self._displaced(growing)
        if self.lost:
            raise SpoolLost(self.lost)

    def forget(self, path: str) -> None:
        """A file that is not looked at any more."""
        self._known.pop(path, None)

    def _displaced(self, growing: tuple[str, ...]) -> str:
        for path in self._watched:
            if why := self._differs(path, grows=False):
                return why
        for path in growing:
            if why := self._differs(path, grows=True):
                return why
        return ""

    def _differs(self, path: str, *, grows: bool) -> str:
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{path}: {error.strerror}; it was removed while the server runs"
        except OSError:
            return ""  # that it cannot be looked at now says nothing of where it is
        found = (state.st_dev, state.st_ino, state.st_size if grows else 0)
        known = self._known.get(path)
        if known == found:
            return ""
        if known is not None and known[:2] != found[:2]:
            return f"{path} was replaced while the server runs"
        if known is not None and found[2] < known[2]:
            return f"{path} was truncated while the server runs"
        self._known[path] = found
        return ""
