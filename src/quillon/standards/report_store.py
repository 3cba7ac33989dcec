"""Reports of SMTP TLS that were received, a file for each. Shell.

FOLDER/DAY.NAME.json   what others saw of a domain of ours on that day (UTC); NAME tells reports apart, so that one
                       which comes twice is kept once
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from quillon.standards.tlsrpt_received import Report, of_row

MOST = 100_000  # reports that are kept; nobody fills a disk with them
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.[0-9a-f]{32}\.json")


class ReportStore:
    """`folder` is that of all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, report: Report) -> bool:
        """Keep a report, durably; False for one that is there. Raises OSError."""
        known = "\n".join((report.submitter, report.report_id, *sorted({one.domain for one in report.policies})))
        name = f"{report.day}.{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / name).exists():
            return False
        if len(os.listdir(self._folder)) >= MOST:
            raise OSError(28, f"there are {MOST} reports", str(self._folder))
        new = self._folder / f"{name}.{os.getpid()}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(report.row(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._folder / name)
        place = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
        return True

    def remove_before(self, day: str) -> int:
        """Remove reports of days before one, as 2026-11-29; how many there were."""
        names = [name for name, of in self._files() if of < day]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / name)
        return len(names)

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
