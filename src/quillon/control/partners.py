"""What the console tells of partners' TLS by day, and of what others report of our own domains."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from typing import Any

from quillon.log.posture import Day, merged, of_row
from quillon.standards.tlsrpt_received import of_row as report_of_row

Row = dict[str, Any]
SOON = 30 * 86400.0  # seconds before the end of a certificate in which that is told
_SUMS = ("attempts", "clear")
_COUNTED = ("protocols", "levels", "causes")


def merge_posture(rows: list[Row]) -> Row:
    """Days of one domain, or domains: rows of workers with `day`, `domain`, or a `report`."""
    days = merged(of_row(row) for row in rows if "day" in row)
    told = [{**day.row(), "changes": day.changes} for day in days]
    reports = [row["report"] for row in rows if "report" in row]
    return {"days": told, "reports": reports, "domains": _domains([row for row in rows if "domain" in row])}


def _domains(rows: list[Row]) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        empty = {"domain": row["domain"], **dict.fromkeys(_SUMS, 0), "ends": 0.0, **{name: {} for name in _COUNTED}}
        known = found.setdefault(row["domain"], empty)
        for name in _SUMS:
            known[name] += row[name]
        for name in _COUNTED:
            known[name] = dict(Counter(known[name]) + Counter(row[name]))
        ends = [end for end in (known["ends"], row["ends"]) if end]
        known["ends"] = min(ends, default=0.0)
    return sorted(found.values(), key=lambda row: -row["attempts"])


def summed(domain: str, days: list[Day]) -> Row:
    """A row for a domain out of its days; `ends` is when the first certificate of its hosts ends that was seen last."""
    found: Row = {"domain": domain, **dict.fromkeys(_SUMS, 0), "ends": 0.0}
    counters: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    last: dict[str, float] = {}
    for day in sorted(days, key=lambda one: one.day):
        for name in _SUMS:
            found[name] += getattr(day, name)
        for name in _COUNTED:
            counters[name].update(getattr(day, name))
        end = day.ends.get(next(reversed(day.certificates), ""))
        if end:
            last[day.host] = end
    found |= {name: dict(counted) for name, counted in counters.items()}
    return {**found, "ends": min(last.values(), default=0.0)}


def plotted(rows: list[Row]) -> list[list[float]]:
    """For a plot: days in seconds since the epoch, and of each the sessions over TLS 1.3, over other versions, in
    clear, and what failed."""
    lines: dict[str, list[float]] = {}
    for row in rows:
        day = of_row(row)
        at = datetime.fromisoformat(f"{day.day}T00:00:00+00:00").timestamp()
        found = lines.setdefault(day.day, [at, 0, 0, 0, 0])
        newest = day.protocols["TLSv1.3"]
        found[1] += newest
        found[2] += day.protocols.total() - newest
        found[3] += day.clear
        found[4] += day.causes.total()
    return [list(line) for line in zip(*(lines[name] for name in sorted(lines)), strict=True)] or [[], [], [], [], []]


def text_posture(found: Row) -> str:
    """For people."""
    out = [domain_line(row) for row in found["domains"]]
    for row in found["days"]:
        out += day_lines(of_row(row), row["changes"])
    for row in found["reports"]:
        out += report_lines(row)
    return "\n".join(out or ["nothing was sent there"]) + "\n"


def domain_line(row: Row) -> str:
    """One domain on a line."""
    parts = [f"{row['attempts']} attempts", _counts(row["protocols"]), f"level {_counts(row['levels'])}"]
    parts += [f"{row['clear']} in clear"] if row["clear"] else []
    parts += [_counts(row["causes"])] if row["causes"] else []
    left = row["ends"] - time.time()
    parts += [f"a certificate ends in {max(left, 0) / 86400:.0f} days"] if row["ends"] and left < SOON else []
    return f"{row['domain']}: {'; '.join(part for part in parts if part and part != 'level ')}"


def day_lines(day: Day, changes: list[str]) -> list[str]:
    """A day of a host, with what has changed."""
    parts = [_counts(day.protocols), _counts(day.groups), f"level {_counts(day.levels)}" if day.levels else ""]
    parts += [f"by {_counts(day.standards)}" if day.standards else "", f"{day.clear} in clear" if day.clear else ""]
    parts += [_counts(day.causes)] if day.causes else []
    parts += [f"would have waited: {_counts(day.would_wait)}"] if day.would_wait else []
    head = f"{day.day} {day.host}: {day.attempts} attempts; {'; '.join(part for part in parts if part)}"
    return [head, *(f"    CHANGED: {change}" for change in changes)]


def report_lines(row: Row) -> list[str]:
    """What somebody has told of sessions with a domain of ours."""
    report, out = report_of_row(row), []
    for policy in report.policies:
        told = f"{policy.good} sessions, {policy.bad} failed"
        out.append(f"{report.day} {policy.domain}, reported by {report.submitter} under {policy.type}: {told}")
        for failure in policy.failures:
            at = failure.mx or failure.receiving_ip
            why = f", {failure.reason}" if failure.reason and failure.reason != failure.result else ""
            out.append(f"    FAILED: {failure.result} {failure.sessions}{f' at {at}' if at else ''}{why}")
    return out


def _counts(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common())
