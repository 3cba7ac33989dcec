"""Counters of what happened, in the text format that Prometheus reads.

A worker counts; the supervisor adds up. Label values come from closed sets: outcomes, versions, cause codes.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, TransientFailure
from quillon.net.histogram import Histogram

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
    "quillon_tls_parameters_total": "Inbound handshakes by our address, outbound attempts by binding, and TLS.",
    "quillon_domain_attempts_total": "Attempts by the recipient's domain, outcome, TLS version and cause code.",
    "quillon_binding_attempts_total": "Attempts by binding and outcome.",
    "quillon_binding_receptions_total": "Messages accepted, by binding.",
    "quillon_policy_seconds_total": "Time spent in policy modules, waits included, by module and phase.",
    "quillon_policy_calls_total": "Calls of policy modules, by module and phase.",
    "quillon_dns_queries_total": "Questions to DNS servers, by type.",
    "quillon_dns_cache_hits_total": "Questions that a worker's cache has answered.",
    "quillon_throttled_seconds_total": "Time for which throttles have held destinations, by option.",
}
HISTOGRAMS = {
    "quillon_commit_seconds": "From the begin of a group of changes to its end on disk, by what is written.",
}
MOST_LISTED = 500  # domains with series of their own
ENOUGH = 100  # attempts to a domain that has no stanza, until it has
MOST_DOMAINS = 10_000  # that are counted at all
OTHERS = "other"  # stands for all domains without series of their own


GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "quillon_queue_messages": ("Messages that wait, by state.", sum),
    "quillon_queue_destinations": ("Destinations with messages or connections, by what they wait for.", sum),
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
    """Counts by series, which is the name with its labels as it is printed. `is_named` tells whether a domain has a
    stanza: these have series of their own, and so have those that get much mail, up to a bound."""

    def __init__(self, is_named: Callable[[str], bool] = lambda _: False) -> None:
        self.counts: Counter[str] = Counter()
        self.is_named = is_named
        self._listed: set[str] = set()
        self.domains: OrderedDict[str, Counter[str]] = (
            OrderedDict()
        )  # outcomes by domain and by destination, of the last that had any
        self.bindings: dict[str, Counter[str]] = {}  # the same, and receptions

    def count(self, event: Event) -> None:
        if isinstance(event, Received):
            self.counts[_receptions(*_tls(event.tls))] += 1
            self._binding(event.message, "received")
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
            self.counts[_parameters("inbound", event.local, event.tls)] += 1
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
        tls = _tls(event.tls)
        self.counts[_attempts(kind, *tls)] += 1
        binding = self._binding(event.message, kind)
        if event.tls is not None:
            self.counts[_parameters("outbound", binding, event.tls)] += 1
        cause = "" if isinstance(outcome, Delivered) else outcome.cause
        cause = cause or (event.tls.cause if event.tls is not None else "")
        domain, destination = event.message.recipient.domain, event.message.destination
        self.counts[_of_domain(self._domain(domain, kind), kind, tls[0], cause or "none")] += 1
        if destination != domain:
            self._tally(destination, kind)
        if cause:
            self.counts[_series("quillon_tls_failures_total", direction="outbound", cause=cause)] += 1

    def _binding(self, message: Message, what: str) -> str:
        """Count what became of a message for its binding, whose name with its group this is."""
        name = f"{message.binding_group}/{message.binding}"
        found = self.bindings.get(name)
        if found is None:
            found = self.bindings[name] = Counter()
        found[what] += 1
        return name

    def _domain(self, name: str, outcome: str) -> str:
        """Count an outcome for a domain; the name under which its series go."""
        count = self._tally(name, outcome)
        if name in self._listed:
            return name
        if len(self._listed) < MOST_LISTED and (self.is_named(name) or count >= ENOUGH):
            self._listed.add(name)
            return name
        return OTHERS

    def _tally(self, name: str, outcome: str) -> int:
        """Count an outcome for a domain, or for where its mail goes; how many there have been."""
        found = self.domains.get(name)
        if found is None:
            found = self.domains[name] = Counter()
            while len(self.domains) > MOST_DOMAINS:
                self.domains.popitem(last=False)
        else:
            self.domains.move_to_end(name)
        found[outcome] += 1
        return found.total()

    def rows(self) -> Iterator[tuple[str, float]]:
        """All series and their counts."""
        yield from self.counts.items()
        for name, counts in self.bindings.items():
            for what, count in counts.items():
                if what == "received":
                    yield labelled("quillon_binding_receptions_total", binding=name), count
                else:
                    yield labelled("quillon_binding_attempts_total", binding=name, outcome=what), count


def histogram(name: str, seconds: Histogram, **labels: str) -> Iterator[tuple[str, float]]:
    """The series of a histogram."""
    for bound, count in seconds.buckets():
        yield _series(f"{name}_bucket", **labels, le=bound), count
    yield _series(f"{name}_sum", **labels), seconds.sum
    yield _series(f"{name}_count", **labels), seconds.count


@lru_cache(maxsize=4096)
def _of_domain(domain: str, outcome: str, version: str, cause: str) -> str:
    return labelled("quillon_domain_attempts_total", domain=domain, outcome=outcome, version=version, cause=cause)


def _parameters(direction: str, at: str, tls: TlsFacts) -> str:
    """Where a handshake was, and what came of it."""
    verdict = {True: "verified", False: "not verified", None: "not asked for"}[tls.verified]
    verdict = verdict if tls.protocol else "failed"
    return _parameter_series(direction, at, tls.protocol or "none", tls.cipher or "none", tls.group or "none", verdict)


@lru_cache(maxsize=1024)
def _parameter_series(direction: str, at: str, version: str, cipher: str, group: str, verdict: str) -> str:
    labels = {"version": version, "cipher": cipher, "group": group, "certificate": verdict}
    return labelled("quillon_tls_parameters_total", direction=direction, at=at, **labels)


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


def labelled(name: str, **labels: str) -> str:
    """A series as it is printed. Label values may be anything."""
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


_BUCKET = re.compile(r'(.*_bucket\{(?:.*,)?)le="([^"]+)"\}')


def _order(series: str) -> tuple[str, float]:
    """Buckets by their bounds, which as text would be in another order."""
    bucket = _BUCKET.fullmatch(series)
    return (bucket[1], float(bucket[2])) if bucket is not None else (series, 0.0)


def render(values: Mapping[str, float]) -> str:
    """The exposition text of merged series, as Prometheus reads it."""
    lines: list[str] = []
    kinds = [(name, words, "counter") for name, words in HELP.items()]
    kinds += [(name, words, "gauge") for name, (words, _) in GAUGES.items()]
    kinds += [(name, words, "histogram") for name, words in HISTOGRAMS.items()]
    parts = {f"{name}_{part}": name for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    by_name: dict[str, list[str]] = {}
    for series in sorted(values, key=_order):
        name = series.partition("{")[0]
        by_name.setdefault(parts.get(name, name), []).append(f"{series} {values[series]:.15g}")
    for name, words, kind in kinds:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *by_name.get(name, [])]
    return "\n".join(lines) + "\n"
