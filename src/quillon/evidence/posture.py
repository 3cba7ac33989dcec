"""What partners do with TLS, and what stricter settings would have held back, out of records of evidence. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from quillon.tls.proven import LEVELS, enough

Row = dict[str, Any]
UNKNOWN = "not_verified_then"  # nothing was verified when it was delivered


@dataclass
class Day:
    """What a host did with TLS on one day (UTC). Counters by name; certificates by SHA-256 of the host's own one."""

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
    changes: list[str] = field(default_factory=list)

    def note(self, row: Row) -> None:
        """One attempt, or one host that failed."""
        tls = row["tls"] or {}
        self.attempts += 1
        if row.get("would_wait"):
            self.would_wait[row["would_wait"]] += 1
        cause = row.get("cause") or tls.get("cause", "")
        if cause:
            self.causes[cause] += 1
        if not tls.get("protocol"):
            self.clear += row.get("outcome") == "delivered"
            return
        self.protocols[tls["protocol"]] += 1
        self.ciphers[tls["cipher"]] += 1
        self.groups[tls["group"] or "none"] += 1
        self.levels[tls["level"]] += 1
        if tls["standard"]:
            self.standards[tls["standard"]] += 1
        if tls["certificates"]:
            self.certificates[tls["certificates"][0]] += 1


def posture(rows: Iterable[Row]) -> list[Day]:
    """What each host did on each day, by day, with what has changed since the last day that it was talked to."""
    days: dict[tuple[str, str], Day] = {}
    for row in rows:
        if row["kind"] not in ("attempt", "host") or not row["host"]["ip"]:
            continue
        if row["kind"] == "attempt" and row["outcome"] == "transient":
            continue  # each host that was tried has a record of its own
        key = row["at"][:10], row["host"]["name"] or row["host"]["ip"]
        days.setdefault(key, Day(*key)).note(row)
    found = [days[key] for key in sorted(days)]
    last: dict[str, Day] = {}
    for day in found:
        if day.host in last:
            day.changes = list(_changes(last[day.host], day))
        last[day.host] = day
    return found


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


@dataclass
class Trial:
    """What settings would have made of the mail of one domain: how many deliveries, and how many of them would have
    waited, by cause, host and day. `unknown` were delivered without being verified, so nobody can tell."""

    domain: str
    delivered: int = 0
    waiting: int = 0
    unknown: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)

    @property
    def bears(self) -> bool:
        """Whether all that was delivered would have been."""
        return bool(self.delivered) and not self.waiting and not self.unknown


def dry_run(rows: Iterable[Row], tls: str, verify: str) -> list[Trial]:
    """What TLS and TLS_Verify would have made of deliveries that have happened, by domain; those that would suffer most
    come first."""
    found: dict[str, Trial] = defaultdict(lambda: Trial(""))
    for row in rows:
        if row["kind"] != "attempt" or row["outcome"] != "delivered":
            continue
        trial = found[row["to"]]
        trial.domain = row["to"]
        trial.delivered += 1
        cause = held(row, tls, verify)
        if cause == UNKNOWN:
            trial.unknown += 1
        elif cause:
            trial.waiting += 1
        if cause:
            trial.causes[cause] += 1
            trial.hosts[row["host"]["name"]] += 1
            trial.days[row["at"][:10]] += 1
    return sorted(found.values(), key=lambda one: (-one.waiting, -one.unknown, one.domain))


def held(row: Row, tls: str, verify: str) -> str:
    """The cause why a delivery would have waited under these settings, UNKNOWN where that cannot be told, "" if it
    would have gone."""
    facts = row["tls"] or {}
    if not facts.get("protocol"):
        # under `ifavailable` a host without STARTTLS gets mail in clear, and so may one whose negotiation has failed
        return (facts.get("cause") or "no_starttls") if tls == "required" else ""
    if enough(facts["level"], verify):
        return ""
    if facts["verified"] is None:
        return UNKNOWN
    return facts["cause"] or "name_mismatch"
