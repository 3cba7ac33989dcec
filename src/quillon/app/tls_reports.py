"""Reports of SMTP TLS (RFC 8460): counted by each worker, put together and sent by one when the day is over. Shell.

DAY.worker-N.json   what a worker has counted on a day (UTC), written every minute and at the end
DAY.sent.json       domains whose report is on its way, so that no restart sends it twice
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from quillon.config.settings import TlsReportSettings
from quillon.mail import tls_report
from quillon.mail.address import Mailbox, parse_mailbox
from quillon.net.clock import Clock
from quillon.net.resolver import Resolver
from quillon.standards.tlsrpt import DataPoint, HandshakeCounts, day_of, destinations

WRITE = 60.0  # seconds between two writes of the counts
LATE = 2 * 86400.0  # seconds behind the end of a day after which what could not be sent is given up
_LOOK = 60.0  # seconds between two looks whether a day is over
MOST_URIS = 5  # of a domain that get its report
_RETRY = 3600.0  # and where something could not be sent
_PATIENCE = 30.0  # seconds for a report over HTTPS
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.worker-\d+\.json")

Inject = Callable[[Mailbox, Sequence[Mailbox], bytes], Awaitable[None]]


class TlsReports:
    """`folder` is that of all workers, `number` this one's. `spread` is the part of an hour by which nodes send at
    different times, `inject` takes a mail, `report` lines for the paniclog."""

    def __init__(
        self,
        settings: TlsReportSettings,
        folder: Path,
        number: int,
        resolver: Resolver,
        clock: Clock,
        inject: Inject,
        report: Callable[[str], None],
        spread: float = 0.0,
    ) -> None:
        self.settings = settings
        self.resolver = resolver
        self._folder = folder
        self._number = number
        self._clock = clock
        self._inject = inject
        self._report = report
        self._delay = spread * 4 * 3600.0
        self._day = day_of(clock.now())
        self._counts = self._read(self._file(self._day))
        self._changed = False
        self._write_at = 0.0
        self._send_at = 0.0
        self._sending = False

    def add(self, point: DataPoint) -> None:
        """One more handshake."""
        day = day_of(point.time)
        if day != self._day:
            self.write()
            self._day, self._counts = day, HandshakeCounts()
        self._counts.add(point)
        self._changed = True

    def write(self) -> None:
        """Put the counts on disk."""
        if not self._changed:
            return
        file = self._file(self._day)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f"{file.name}.new")
            new.write_text(json.dumps(self._counts.rows()))
            os.replace(new, file)
            self._changed = False
        except OSError as error:
            self._report(f"tls_reports: {file}: {error.strerror}")

    async def look_after(self) -> None:
        """What is to be done from time to time."""
        now = self._clock.now()
        if now >= self._write_at:
            self._write_at = now + WRITE
            self.write()
        if self._number == 0 and now >= self._send_at and not self._sending:
            self._send_at, self._sending = now + _LOOK, True
            try:
                await self.send_due()
            finally:
                self._sending = False

    async def send_due(self) -> None:
        """Send what is due of days that are over."""
        now = self._clock.now()
        for day in sorted({found[1] for file in self._files() if (found := _FILE.fullmatch(file))}):
            over = _end_of(day)
            if day >= day_of(now) or now < over + self._delay:
                continue
            if await self._send_day(day) or now > over + LATE:
                self._remove(day)
            else:
                self._send_at = now + _RETRY

    async def _send_day(self, day: str) -> bool:
        """Send the reports of a day; whether all are on their way."""
        counts = HandshakeCounts()
        for file in self._files():
            if file.startswith(f"{day}.worker-"):
                counts.read(self._read(self._folder / file).rows())
        sent = self._sent(day)
        whole = True
        for domain in counts.domains():
            if domain in sent:
                continue
            if await self._send(domain, day, counts):
                sent.add(domain)
                self._note_sent(day, sent)
            else:
                whole = False
        return whole

    async def _send(self, domain: str, day: str, counts: HandshakeCounts) -> bool:
        """Send the report of a domain wherever it wants it; False if it has to be tried again."""
        answer = await self.resolver.lookup(f"_smtp._tls.{domain}", "TXT")
        if answer.status == "failed":
            return False
        uris = destinations(text for _, text in answer.records)
        report_id = f"{day}-{zlib.crc32(f'{self.settings.submitter} {domain} {day}'.encode()):08x}"
        contact = str(self.settings.contact or self.settings.sender)
        row = counts.report(domain, day, self.settings.organization, contact, report_id)
        octets = gzip.compress(json.dumps(row).encode(), mtime=0)
        results = [await self._give(uri, domain, day, report_id, octets) for uri in uris[:MOST_URIS]]
        return not uris or any(results)

    async def _give(self, uri: str, domain: str, day: str, report_id: str, octets: bytes) -> bool:
        try:
            if uri.lower().startswith("https:"):
                return await _posted(uri, octets)
            mailbox = parse_mailbox(unquote(urlsplit(uri).path))
            settings = self.settings
            mail = tls_report.render(
                str(settings.sender),
                str(mailbox),
                settings.submitter,
                domain,
                day,
                report_id,
                octets,
                self._clock.now(),
            )
            await self._inject(settings.sender, [mailbox], mail)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            self._report(f"tls_reports: {domain}: {uri}: {error or type(error).__name__}")
            return False
        except Exception as error:
            self._report(f"tls_reports: {domain}: {uri}: {error!r}")
            return False
        return True

    # files ----------------------------------------------------------------------------------------------------

    def _file(self, day: str) -> Path:
        return self._folder / f"{day}.worker-{self._number}.json"

    def _files(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except OSError:
            return []

    def _read(self, file: Path) -> HandshakeCounts:
        counts = HandshakeCounts()
        try:
            counts.read(json.loads(file.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._report(f"tls_reports: {file} cannot be read: {error}")
        return counts

    def _sent(self, day: str) -> set[str]:
        try:
            return set(json.loads((self._folder / f"{day}.sent.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return set()

    def _note_sent(self, day: str, sent: set[str]) -> None:
        with contextlib.suppress(OSError):
            (self._folder / f"{day}.sent.json").write_text(json.dumps(sorted(sent)))

    def _remove(self, day: str) -> None:
        for file in self._files():
            if file.startswith(f"{day}."):
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / file)


async def _posted(uri: str, octets: bytes) -> bool:
    """Post a report; what is answered but for the status is nobody's concern. Raises httpx.HTTPError, ValueError,
    TimeoutError."""
    headers = {"Content-Type": "application/tlsrpt+gzip"}
    async with (
        asyncio.timeout(_PATIENCE),
        httpx.AsyncClient(trust_env=False, timeout=_PATIENCE) as client,
        client.stream("POST", uri, content=octets, headers=headers) as answer,
    ):
        if not answer.is_success:
            raise ValueError(f"status {answer.status_code}")
    return True


def _end_of(day: str) -> float:
    return tls_report.begin_of(day) + 86400.0
