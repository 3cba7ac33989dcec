"""Room on the spool's disk: looked at before mail is taken, so that what has been taken can always be finished.

`shortage` says why no new mail is taken, from the free octets and inodes of the file system and whether it can be
written to. New mail is refused before the disk is full; delivery goes on, and removals have what is left. The state is
asked of the system once a second at most. It ends when there is a quarter more than the minimum.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

LOOK = 1.0  # seconds for which an answer holds
MIB = 1 << 20


class Room:
    """`octets` and `inodes` are the minimum that stays free; 0 does not look."""

    def __init__(self, folder: Path, octets: int, inodes: int, now: Callable[[], float]) -> None:
        self._folder = folder
        self._octets = octets
        self._inodes = inodes
        self._now = now
        self._looked = 0.0
        self._shortage = ""
        self.free = 0

    def reconfigure(self, octets: int, inodes: int) -> None:
        """Other minimums."""
        self._octets, self._inodes, self._looked = octets, inodes, 0.0

    def shortage(self) -> str:
        """Why no new mail is taken; empty if there is room."""
        now = self._now()
        if not 0 <= now - self._looked < LOOK:
            self._looked = now
            self._shortage = self._look()
        return self._shortage

    def _look(self) -> str:
        try:
            state = os.statvfs(self._folder)
        except OSError as error:
            return f"{self._folder} cannot be looked at: {error.strerror}"
        self.free = state.f_bavail * state.f_frsize
        if state.f_flag & os.ST_RDONLY:
            return f"the file system of {self._folder} is read-only"
        more = 5 if self._shortage else 4  # quarters
        if self._octets and self.free * 4 < self._octets * more:
            return f"{self.free // MIB} MiB are free in {self._folder}, less than {self._octets * more // 4 // MIB} MiB"
        if self._inodes and state.f_files and state.f_favail * 4 < self._inodes * more:
            return f"{state.f_favail} inodes are free in {self._folder}, less than {self._inodes * more // 4}"
        return ""
