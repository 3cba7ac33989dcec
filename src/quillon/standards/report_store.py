"""Reports of SMTP TLS that were received, a file for each. Shell.

FOLDER/DAY.NAME.json   what others saw of a domain of ours on that day (UTC); NAME tells reports apart, so that one
                       which comes twice is kept once
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quillon.standards.tlsrpt_received import Report, of_row

MOST = 20_000  # reports that are kept
MOST_OCTETS = 512 * 1024 * 1024  # of all of them
_COUNT = 60.0  # seconds between two counts of that
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.[0-9a-f]{32}\.json")


class ReportStore:
    """`folder` is that of all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counted_at = -math.inf
        self._full = ""

    def put(self, report: Report, now: float) -> bool:
        """Keep a report, durably; False for one that is there. `now` is in seconds since the epoch. Raises OSError."""
        known = "\n".join((report.submitter, report.report_id, *sorted({one.domain for one in report.policies})))
        file = self._folder / f"{report.day}.{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            return False
        self._count(now)
        if self._full:
            raise OSError(errno.EDQUOT, self._full, str(self._folder))
        descriptor, new = tempfile.mkstemp(".new", dir=self._folder)
        try:
            with open(descriptor, "w", encoding="utf-8") as out:
                json.dump(report.row(), out)
                out.flush()
                os.fsync(descriptor)
            os.link(new, file)
        except FileExistsError:
            return False  # another worker was faster
        finally:
            os.unlink(new)
        place = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
        return True

    def _count(self, now: float) -> None:
        """Whether there is room for more, looked at from time to time."""
        if now - self._counted_at < _COUNT:
            return
        self._counted_at = now
        with os.scandir(self._folder) as entries:
            sizes = [entry.stat().st_size for entry in entries]
        over = len(sizes) >= MOST or sum(sizes) >= MOST_OCTETS
        self._full = f"there are {len(sizes)} reports of {sum(sizes)} octets, and no more are kept" if over else ""

    def remove_before(self, time: float) -> int:
        """Remove what was received before a time, in seconds since the epoch, whatever day it is of; how many files
        there were."""
        removed = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in list(entries):
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime < time:
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def of(self, domain: str, since: str = "") -> Iterator[Report]:
        """What was said of a domain, or of `all`, by day; files that cannot be read are left out."""
        for name, day in sorted(self._files()):
            if day < since:
                continue
            try:
                report = of_row(json.loads((self._folder / name).read_bytes()))
            except (OSError, ValueError, TypeError, KeyError):
                continue
            mine = tuple(one for one in report.policies if domain in (one.domain, "all"))
            if mine:
                yield report._replace(policies=mine)

    def _files(self) -> list[tuple[str, str]]:
        try:
            return [(name, found[1]) for name in os.listdir(self._folder) if (found := _FILE.fullmatch(name))]
        except FileNotFoundError:
            return []
