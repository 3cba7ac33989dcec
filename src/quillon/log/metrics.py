"""Counters of what happened, in the text format that Prometheus reads.

A worker counts; the supervisor adds up. Label values come from closed sets: outcomes, versions, cause codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from quillon.mail.event import (
    Attempted,
    Authenticated,
    Discarded,
    Event,
    Handshaken,
    HostFailed,
    Received,
    Rejected,
    TlsFacts,
    TlsReported,
)
from quillon.mail.outcome import Delivered, TransientFailure

HELP = {
    "quillon_receptions_total": "Messages accepted, by TLS version, client certificate, level proven.",
    "quillon_attempts_total": "Attempts to deliver that ended, by outcome, TLS version, verification, level proven.",
    "quillon_rejections_total": "Commands refused, by reply code.",
    "quillon_discards_total": "Messages accepted and dropped by policy.",
    "quillon_authentications_total": "Attempts to authenticate that are accounted, by mechanism and result.",
    "quillon_host_failures_total": "Hosts that did not come to the point of taking mail, by TLS cause code or none.",
    "quillon_handshakes_total": "Inbound handshakes, by result and TLS version.",
    "quillon_tls_reported_sessions_total": "Sessions of others with us that they have reported, by result.",
    "quillon_tls_failures_total": "TLS failures by direction and cause code.",
}


GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "quillon_queue_messages": ("Messages that wait, by state.", sum),
    "quillon_queue_destinations": ("Destinations with messages or connections.", sum),
    "quillon_queue_oldest_seconds": ("Age of the oldest message that waits, looked at once a minute.", max),
    "quillon_queue_suspensions": ("Suspensions that hold, by an operator's order.", max),
    "quillon_connections": ("Connections that stand or are being opened, by direction.", sum),
    "quillon_spool_free_bytes": ("Room on the spool's disk.", min),
    "quillon_spool_pending_changes": ("Changes of the spool that wait to be written.", sum),
    "quillon_spool_refusing": ("Workers that take no new mail for want of room or by a disk's fault.", sum),
    "quillon_certificate_expiry_timestamp_seconds": ("When a certificate of ours ends, by file.", min),
    "quillon_workers": ("Workers that answer.", sum),
    "quillon_uptime_seconds": ("Age of the oldest worker.", max),
}
"""Values that go up and down: what each is, and how those of several workers are put together."""


class Metrics:
    """Counts by series, which is the name with its labels as it is printed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, event: Event) -> None:
        if isinstance(event, Received):
            self.counts[_receptions(*_tls(event.tls))] += 1
        elif isinstance(event, Attempted):
            self._attempt(event)
        elif isinstance(event, HostFailed):
            self.counts[_series("quillon_host_failures_total", cause=event.outcome.cause or "none")] += 1
        elif isinstance(event, Rejected):
            self.counts[_series("quillon_rejections_total", code=str(event.reply.code))] += 1
        elif isinstance(event, Discarded):
            self.counts[_series("quillon_discards_total", code=str(event.reply.code))] += 1
        elif isinstance(event, Authenticated):
            result = "pass" if event.ok else "fail"
            self.counts[_series("quillon_authentications_total", mechanism=event.mechanism, result=result)] += 1
        elif isinstance(event, TlsReported):
            self.counts[_series("quillon_tls_reported_sessions_total", result="ok")] += event.good
            self.counts[_series("quillon_tls_reported_sessions_total", result="failed")] += event.bad
        elif isinstance(event, Handshaken):
            result = "ok" if event.ok else "failed"
            self.counts[_series("quillon_handshakes_total", result=result, version=event.tls.protocol or "none")] += 1
            if event.tls.cause:
                self.counts[_series("quillon_tls_failures_total", direction="inbound", cause=event.tls.cause)] += 1

    def totals(self) -> dict[str, int]:
        """What was received, rejected, and came of attempts, in all."""
        found = dict.fromkeys(("received", "rejected", "delivered", "transient_failure", "permanent_failure"), 0)
        for series, count in self.counts.items():
            if series.startswith("quillon_receptions_total"):
                found["received"] += count
            elif series.startswith("quillon_rejections_total"):
                found["rejected"] += count
            elif series.startswith("quillon_attempts_total"):
                outcome = series.partition('outcome="')[2].partition('"')[0]
                found[outcome] += count
        return found

    def _attempt(self, event: Attempted) -> None:
        outcome = event.outcome
        kind = "delivered" if isinstance(outcome, Delivered) else "permanent_failure"
        kind = "transient_failure" if isinstance(outcome, TransientFailure) else kind
        self.counts[_attempts(kind, *_tls(event.tls))] += 1
        cause = "" if isinstance(outcome, Delivered) else outcome.cause
        cause = cause or (event.tls.cause if event.tls is not None else "")
        if cause:
            self.counts[_series("quillon_tls_failures_total", direction="outbound", cause=cause)] += 1


@lru_cache(maxsize=256)
def _receptions(version: str, verified: str, level: str) -> str:
    return _series("quillon_receptions_total", version=version, verified=verified, level=level)


@lru_cache(maxsize=256)
def _attempts(outcome: str, version: str, verified: str, level: str) -> str:
    return _series("quillon_attempts_total", outcome=outcome, version=version, verified=verified, level=level)


def _tls(facts: TlsFacts | None) -> tuple[str, str, str]:
    """Version, whether verified, and what was proven."""
    if facts is None or not facts.protocol:
        return "none", "none", "none"
    return facts.protocol, {True: "yes", False: "no", None: "none"}[facts.verified], facts.level


def gauge(name: str, **labels: str) -> str:
    """The series of a gauge, as it is printed. Label values may be anything."""
    escaped = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()
    }
    return _series(name, **escaped) if labels else name


def _series(name: str, **labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inner}}}"


def merge(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Series of several workers, counters added up and each gauge by its own rule."""
    found: dict[str, list[float]] = {}
    for series, value in rows:
        found.setdefault(series, []).append(value)
    how = {name: rule for name, (_, rule) in GAUGES.items()}
    return {series: how.get(series.partition("{")[0], sum)(values) for series, values in found.items()}


def render(values: Mapping[str, float]) -> str:
    """The exposition text of merged series, as Prometheus reads it."""
    lines: list[str] = []
    kinds = [(name, words, "counter") for name, words in HELP.items()]
    kinds += [(name, words, "gauge") for name, (words, _) in GAUGES.items()]
    by_name: dict[str, list[str]] = {}
    for series in sorted(values):
        by_name.setdefault(series.partition("{")[0], []).append(f"{series} {values[series]:.15g}")
    for name, words, kind in kinds:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *by_name.get(name, [])]
    return "\n".join(lines) + "\n"
