"""What partners do with TLS, day by day: counted by a worker as it happens, or out of records. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, cast

from quillon.mail.event import Attempted, Event, HostFailed, TlsFacts
from quillon.mail.outcome import Delivered, TransientFailure
from quillon.tls.proven import LEVELS

Row = dict[str, Any]
MOST = 10_000  # hosts of one day that a worker counts, each for a domain


@dataclass
class Day:
    """What a host did with TLS on one day (UTC). Counters by name; certificates by SHA-256 of the host's own one, of
    which `ends` has when they end, in seconds since the epoch, where that is known."""

    day: str
    host: str
    attempts: int = 0
    clear: int = 0
    protocols: Counter[str] = field(default_factory=Counter)
    ciphers: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    levels: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    standards: Counter[str] = field(default_factory=Counter)
    certificates: Counter[str] = field(default_factory=Counter)
    would_wait: Counter[str] = field(default_factory=Counter)
    ends: dict[str, float] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)

    def failed(self, cause: str) -> None:
        """TLS went wrong, or was not good enough."""
        self.causes[cause] += 1

    def spoke(self, protocol: str, cipher: str, group: str, level: str, standard: str, certificate: str) -> None:
        """A session over TLS."""
        self.protocols[protocol] += 1
        self.ciphers[cipher] += 1
        self.groups[group or "none"] += 1
        self.levels[level] += 1
        if standard:
            self.standards[standard] += 1
        if certificate:
            self.certificates[certificate] += 1

    def row(self) -> Row:
        """For a file; `of_row` takes it back. What is empty is left out."""
        return {name: value for name, value in vars(self).items() if value and name != "changes"}

    def add(self, other: Day) -> None:
        """What another worker has counted of the same host and day."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.attempts += other.attempts
        self.clear += other.clear
        self.ends |= other.ends


_COUNTERS = tuple(one.name for one in fields(Day) if one.type == "Counter[str]")


def of_row(row: Row) -> Day:
    """A day as `Day.row` gave it. Raises KeyError, TypeError, ValueError."""
    day = Day(str(row["day"]), str(row["host"]), int(row.get("attempts", 0)), int(row.get("clear", 0)))
    for name in _COUNTERS:
        getattr(day, name).update({str(key): int(count) for key, count in row.get(name, {}).items()})
    day.ends = {str(key): float(end) for key, end in row.get("ends", {}).items()}
    return day


class DailyPosture:
    """What a worker counts of one day, by domain and host."""

    def __init__(self, day: str) -> None:
        self.day = day
        self.left_out = 0  # what was not counted, since there are too many hosts
        self._days: dict[tuple[str, str], Day] = {}

    def see(self, event: Event) -> bool:
        """Whatever is logged; whether it was counted."""
        if isinstance(event, Attempted):
            outcome = event.outcome
            if isinstance(outcome, TransientFailure) or not outcome.remote_ip:
                return False  # each host that was tried has an event of its own
            domain, would_wait = event.message.recipient.domain, event.would_wait
        elif isinstance(event, HostFailed):
            outcome, domain, would_wait = event.outcome, event.domain, ""
            if not outcome.remote_ip:
                return False
        else:
            return False
        day = self._of(domain, event.host or outcome.remote_ip)
        if day is None:
            return False
        day.attempts += 1
        if would_wait:
            day.would_wait[would_wait] += 1
        delivered = isinstance(outcome, Delivered)
        _note(day, event.tls, "" if delivered else cast(Any, outcome).cause, delivered=delivered)
        return True

    def _of(self, domain: str, host: str) -> Day | None:
        found = self._days.get((domain, host))
        if found is None:
            if len(self._days) >= MOST:
                self.left_out += 1
                return None
            found = self._days[domain, host] = Day(self.day, host)
        return found

    def rows(self) -> dict[str, list[Row]]:
        """By domain."""
        found: dict[str, list[Row]] = {}
        for (domain, _), day in self._days.items():
            found.setdefault(domain, []).append(day.row())
        return found

    def of(self, domain: str) -> list[Row]:
        """Of one domain."""
        return [day.row() for (name, _), day in self._days.items() if name == domain]

    def read(self, rows: dict[str, list[Row]]) -> None:
        """Go on with what stands in a file. Raises AttributeError, KeyError, TypeError, ValueError for what is none."""
        for domain, days in rows.items():
            for row in days:
                day = of_row(row)
                self._days[domain, day.host] = day


def _note(day: Day, tls: TlsFacts | None, cause: str, *, delivered: bool) -> None:
    cause = cause or (tls.cause if tls is not None else "")
    if cause:
        day.failed(cause)
    if tls is None or not tls.protocol:
        day.clear += delivered
        return
    day.spoke(tls.protocol, tls.cipher, tls.group, tls.level, tls.standard, tls.fingerprint)
    if tls.ends:
        day.ends[tls.fingerprint] = tls.ends


def day_of(time: float) -> str:
    """The day of a time (UTC), as 2026-11-29."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")


def merged(days: Iterable[Day]) -> list[Day]:
    """Each day and host once, by day, with what has changed since the last day that the host was talked to."""
    found: dict[tuple[str, str], Day] = {}
    for day in days:
        known = found.get((day.day, day.host))
        if known is None:
            found[day.day, day.host] = day
        else:
            known.add(day)
    ordered = [found[key] for key in sorted(found)]
    last: dict[str, Day] = {}
    for day in ordered:
        if day.host in last:
            day.changes = list(_changes(last[day.host], day))
        last[day.host] = day
    return ordered


def _changes(before: Day, now: Day) -> Iterator[str]:
    lost = before.protocols.keys() - now.protocols.keys()
    if before.protocols and not now.protocols:
        yield "lost TLS"
    elif now.protocols and not before.protocols:
        yield "has TLS"
    else:
        yield from (f"lost {name}" for name in sorted(lost))
        yield from (f"has {name}" for name in sorted(now.protocols.keys() - before.protocols.keys()))
    if before.certificates and now.certificates and not before.certificates.keys() & now.certificates.keys():
        yield "has another certificate"
    if _verifies(before) and now.levels and not _verifies(now):
        yield "fails verification"
    yield from (f"first {cause}" for cause in sorted(now.causes.keys() - before.causes.keys()))
    if before.standards and now.protocols and not now.standards:
        yield f"{', '.join(sorted(before.standards))} is gone"


def _verifies(day: Day) -> bool:
    return any(LEVELS.get(level, 0) for level in day.levels)
