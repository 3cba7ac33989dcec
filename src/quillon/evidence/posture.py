"""What partners do with TLS, and what stricter settings would have held back, out of records of evidence. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from quillon.log.posture import Day, merged
from quillon.tls.proven import enough

Row = dict[str, Any]
UNKNOWN = "not_verified_then"  # nothing was verified when it was delivered


def posture(rows: Iterable[Row]) -> list[Day]:
    """What each host did on each day, by day, with what has changed since the last day that it was talked to."""
    days: dict[tuple[str, str], Day] = {}
    for row in rows:
        if row["kind"] not in ("attempt", "host") or not row["host"]["ip"]:
            continue
        if row["kind"] == "attempt" and row["outcome"] == "transient":
            continue  # each host that was tried has a record of its own
        key = row["at"][:10], row["host"]["name"] or row["host"]["ip"]
        _note(days.setdefault(key, Day(*key)), row)
    return merged(days.values())


def _note(day: Day, row: Row) -> None:
    """One attempt, or one host that failed."""
    tls = row["tls"] or {}
    day.attempts += 1
    if row.get("would_wait"):
        day.would_wait[row["would_wait"]] += 1
    cause = row.get("cause") or tls.get("cause", "")
    if cause:
        day.failed(cause)
    if not tls.get("protocol"):
        day.clear += row.get("outcome") == "delivered"
        return
    own = next(iter(tls["certificates"]), "")
    day.spoke(tls["protocol"], tls["cipher"], tls["group"], tls["level"], tls["standard"], own)


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
