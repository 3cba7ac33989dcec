"""`tls_report_receiver`: takes reports of SMTP TLS about our own domains (RFC 8460) out of the mail to one address.

A report counts if a DKIM signature of its author's domain verifies (RFC 8460 3). What is none, or cannot be verified,
is mail like any other and goes on to the address; why stands in the context variable tls_report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from quillon.config.settings import TlsReportReceiverSettings
from quillon.mail import shown, tls_report
from quillon.mail.event import TlsReported
from quillon.mailauth import dkim
from quillon.mailauth.author import author_of
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Callout, Hook, Phase, Verdict
from quillon.policy.message import Content
from quillon.standards.report_store import ReportStore
from quillon.standards.tlsrpt_received import PolicyReport, Report, ReportError, parse

_DAY = 86400.0
_PRUNE = 3600.0  # seconds between two looks for reports that are too old


class TlsReportReceiver:
    """`folder` is where reports are kept, for all workers."""

    facility = "tls_report_receiver"

    def __init__(self, settings: TlsReportReceiverSettings, folder: Path, environment: Environment) -> None:
        self.name = settings.name
        self._folder = folder
        self._settings = settings
        self._environment = environment
        self._store = ReportStore(folder)
        self._prune_at = 0.0

    def callout(self, phase: Phase) -> Callout | None:
        return self._take if phase is Phase.FINAL_VALIDATION else None

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, call: Call) -> Verdict | Awaitable[Verdict]:
        wanted = self._settings.address
        local, _, domain = call.view.recipient.rpartition("@")
        same = domain.lower() == wanted.domain.lower() and local.lower() == wanted.local.lower()
        return self._taken(call) if same else Verdict.CONT

    async def _taken(self, call: Call) -> Verdict:
        settings, now = self._settings, self._environment.now()
        try:
            report = await self._report(call.view.content)
            new = await asyncio.to_thread(self._store.put, report, now)
        except OSError as error:
            self._environment.report(f"tls_report_receiver: {error.filename or self._folder}: {error.strerror}")
            call.context.message["tls_report"] = "not kept: the disk takes none"
            return Verdict.CONT
        except Exception as error:
            # whoever sends it: it is no report, and mail like any other
            call.context.message["tls_report"] = f"none: {shown.line(str(error) or type(error).__name__, shown.NAME)}"
            return Verdict.CONT
        call.context.message["tls_report"] = f"{report.submitter}{'' if new else ', known'}"
        if new:
            for policy in report.policies:
                self._environment.log(_event(report, policy, now))
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE
            await asyncio.to_thread(self._store.remove_before, now - settings.keep)
        if not settings.deliver:
            call.view.discard(f"250 2.0.0 report of {report.submitter} for {report.day}{'' if new else ', again'}")
        return Verdict.CONT

    async def _report(self, content: Content) -> Report:
        """Raises ReportError, ValueError, and what else hostile octets do to those who read them."""
        if content.size > tls_report.MOST_OCTETS:
            raise ReportError(f"the mail has more than {tls_report.MOST_OCTETS} octets")
        author = author_of(content.head)
        if author.fault or len(author.domains) != 1:
            raise ReportError(author.fault or "it has several authors")
        submitter, environment, settings = author.domains[0], self._environment, self._settings
        now = environment.now()
        found = await dkim.verify(content.head, content.body, environment.records, now, "tlsrpt")
        if not any(one.status == "pass" and _speaks_for(one.domain, submitter) for one in found):
            why = next((f": {one.reason}" for one in found if one.reason), "")
            raise ReportError(f"no DKIM signature of {submitter} verifies{why}")
        octets = await asyncio.to_thread(tls_report.extract, content.head, content.body)
        return await asyncio.to_thread(parse, octets, submitter, settings.domains, now - settings.keep, now + _DAY)


def _speaks_for(signer: str, author: str) -> bool:
    """Whether a signing domain is that of the author, or one above it."""
    return author == signer.lower() or author.endswith(f".{signer.lower()}")


def _event(report: Report, policy: PolicyReport, now: float) -> TlsReported:
    failures = tuple((one.result, one.mx or one.receiving_ip, one.sessions) for one in policy.failures)
    return TlsReported(now, report.submitter, report.day, policy.domain, policy.type, policy.good, policy.bad, failures)
