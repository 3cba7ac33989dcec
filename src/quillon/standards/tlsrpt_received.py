"""Reports of SMTP TLS that others send about a domain of ours (RFC 8460 4), as they really look. Pure.

What senders leave out, write as null, as one thing instead of a list, or as text instead of a number is taken all the
same; what they say stands in logs and on pages, so each text is one printable line of bounded length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from quillon.mail import shown

MOST_POLICIES = 20  # of a report
MOST_FAILURES = 100  # of a policy; their sum is told whole
LONGEST = 200  # characters of a text
_MOST_SESSIONS = 10**12
Row = dict[str, Any]


class ReportError(ValueError):
    """This is no report; the message says why."""


class Failure(NamedTuple):
    """Sessions that failed in one way: the result type, how many, from which address to which host, and why."""

    result: str
    sessions: int
    sending_ip: str = ""
    mx: str = ""
    receiving_ip: str = ""
    reason: str = ""


class PolicyReport(NamedTuple):
    """What went well and what did not under one policy: `type` is sts, tlsa or no-policy-found."""

    type: str
    domain: str
    good: int
    bad: int
    failures: tuple[Failure, ...] = ()


class Report(NamedTuple):
    """`submitter` is the domain that has proven to be the sender, `begin` and `end` are in seconds since the epoch."""

    submitter: str
    organization: str
    report_id: str
    begin: int
    end: int
    policies: tuple[PolicyReport, ...]

    @property
    def day(self) -> str:
        """The day (UTC) of which it tells, as 2026-11-29."""
        return datetime.fromtimestamp(self.begin, UTC).strftime("%Y-%m-%d")

    def row(self) -> Row:
        """For a file; `of_row` takes it back."""
        policies = [{**one._asdict(), "failures": [list(failure) for failure in one.failures]} for one in self.policies]
        return {**self._asdict(), "policies": policies}


def of_row(row: Row) -> Report:
    """A report as `Report.row` gave it. Raises KeyError, TypeError, ValueError."""
    policies = tuple(
        PolicyReport(**{**one, "failures": tuple(Failure(*failure) for failure in one["failures"])})
        for one in row["policies"]
    )
    return Report(**{**row, "policies": policies})


def parse(octets: bytes, submitter: str, domains: Iterable[str], begin: float, end: float) -> Report:
    """A report from its JSON, as far as it is about `domains` or what is below them. One that is of no day between two
    times, in seconds since the epoch, is none. Raises ReportError."""
    try:
        row = json.loads(octets)
    except (ValueError, RecursionError):
        raise ReportError("it is no JSON") from None
    if not isinstance(row, dict):
        raise ReportError("it is no JSON object")
    dates = row.get("date-range")
    if not isinstance(dates, dict):
        raise ReportError("it has no date-range")
    began, ended = _moment(dates.get("start-datetime")), _moment(dates.get("end-datetime"))
    if not begin <= began <= end:
        raise ReportError(f"it is of {_text(dates.get('start-datetime'))}, which is too old, or is to come")
    policies = tuple(islice(_policies(row.get("policies"), tuple(domains)), MOST_POLICIES))
    if not policies:
        raise ReportError("it tells of no policy of ours")
    return Report(submitter, _text(row.get("organization-name")), _text(row.get("report-id")), began, ended, policies)


def _policies(found: object, domains: tuple[str, ...]) -> Iterator[PolicyReport]:
    for one in _several(found):
        policy, summary = one.get("policy"), one.get("summary")
        if not isinstance(policy, dict) or not isinstance(summary, dict):
            continue
        domain = _text(policy.get("policy-domain")).lower().rstrip(".")
        if not any(domain == ours or domain.endswith(f".{ours}") for ours in domains):
            continue
        failures = tuple(_failures(one.get("failure-details")))
        good, bad = (_count(summary.get(f"total-{kind}-session-count")) for kind in ("successful", "failure"))
        yield PolicyReport(_text(policy.get("policy-type")).lower(), domain, good, bad, failures)


def _failures(found: object) -> Iterator[Failure]:
    for one in _several(found)[:MOST_FAILURES]:
        yield Failure(
            _text(one.get("result-type")).lower() or "unknown",
            _count(one.get("failed-session-count")),
            _text(one.get("sending-mta-ip")),
            _text(one.get("receiving-mx-hostname")).lower().rstrip("."),
            _text(one.get("receiving-ip")),
            _text(one.get("failure-reason-code")) or _text(one.get("additional-information")),
        )


def _several(found: object) -> list[Row]:
    """The objects of a list, or one that stands alone."""
    many = found if isinstance(found, list) else [found]
    return [one for one in many if isinstance(one, dict)]


def _text(found: object) -> str:
    return shown.line(str(found).strip(), LONGEST) if isinstance(found, (str, int)) else ""


def _count(found: object) -> int:
    """A number of sessions, which some write as text."""
    try:
        number = int(found) if isinstance(found, (int, str)) else 0
    except ValueError:
        return 0
    return min(max(number, 0), _MOST_SESSIONS)


def _moment(found: object) -> int:
    try:
        moment = datetime.fromisoformat(str(found).strip())
        return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise ReportError(f"{_text(found) or 'nothing'} is no date") from None
