"""What partners do with TLS, kept by day for pages, console and command. Shell.

FOLDER/DAY.worker-N.json   what a worker has counted on a day (UTC), written every few minutes and at the end
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from quillon.log.posture import DailyPosture, Row, day_of
from quillon.mail.event import Event
from quillon.net.clock import Clock

WRITE = 300.0  # seconds between two writes
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.worker-(\d+)\.json")
Rows = dict[str, list[Row]]


class PostureKeeper:
    """`folder` is that of all workers, `number` this one's of `count`; `keep` in seconds. `report` takes lines for the
    paniclog."""

    def __init__(
        self, folder: Path, number: int, count: int, keep: int, clock: Clock, report: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self._number = number
        self._count = count
        self.keep = keep
        self._clock = clock
        self._report = report
        self._changed = False
        self._write_at = 0.0
        self._failed = ""
        self._today = DailyPosture(day_of(clock.now()))
        self._resume()

    def _resume(self) -> None:
        file = self._file(self._today.day)
        try:
            self._today.read(msgspec.json.decode(file.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._report(f"posture: {file} cannot be read: {error}")

    def see(self, event: Event) -> None:
        """Whatever is logged."""
        day = day_of(event.time)
        if day > self._today.day:
            self.write()
            self._today = DailyPosture(day)
        self._changed = self._today.see(event) or self._changed

    async def look_after(self) -> None:
        """What is to be done from time to time."""
        now = self._clock.now()
        if now >= self._write_at:
            self._write_at = now + WRITE
            await asyncio.to_thread(self._put, self._taken())
            await asyncio.to_thread(self._prune, day_of(now - self.keep))

    def write(self) -> None:
        """Put the counts on disk."""
        self._put(self._taken())

    def _taken(self) -> tuple[str, bytes] | None:
        """What is to be written, if there is anything new."""
        if not self._changed:
            return None
        self._changed = False
        return self._today.day, msgspec.json.encode(self._today.rows())

    def _put(self, taken: tuple[str, bytes] | None) -> None:
        if taken is None:
            return
        file = self._file(taken[0])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f"{file.name}.new")
            new.write_bytes(taken[1])
            os.replace(new, file)
            self._failed = ""
        except OSError as error:
            if self._failed != str(error):
                self._failed = str(error)
                self._report(f"posture: {file}: {error.strerror}")

    def _prune(self, oldest: str) -> None:
        if self._number == 0:
            for day, number in _files(self.folder):
                if day < oldest:
                    with contextlib.suppress(OSError):
                        os.unlink(self.folder / f"{day}.worker-{number}.json")

    def _file(self, day: str) -> Path:
        return self.folder / f"{day}.worker-{self._number}.json"

    async def rows(self, since: str) -> list[Rows]:
        """What this worker has counted on each day since one, by domain; the first one has those that are gone, too."""
        mine = [
            (day, number)
            for day, number in await asyncio.to_thread(lambda: list(_files(self.folder)))
            if day >= since and (number == self._number or (self._number == 0 and number >= self._count))
        ]
        found = [
            await asyncio.to_thread(read, self.folder / f"{day}.worker-{number}.json")
            for day, number in mine
            if (day, number) != (self._today.day, self._number)
        ]
        return [*found, self._today.rows()]


def read(file: Path) -> Rows:
    """What stands in a file; nothing for one that cannot be read."""
    try:
        rows = msgspec.json.decode(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return rows if isinstance(rows, dict) else {}


def kept(folder: Path, since: str) -> Iterator[Rows]:
    """What all workers have put on disk of the days since one."""
    for day, number in sorted(_files(folder)):
        if day >= since:
            yield read(folder / f"{day}.worker-{number}.json")


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if (found := _FILE.fullmatch(name)) is not None:
                yield found[1], int(found[2])
