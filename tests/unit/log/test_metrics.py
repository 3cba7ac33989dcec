"""What is counted of events, and how it is printed."""

from __future__ import annotations

import dataclasses
import re

import pytest

from quillon.log.metrics import ENOUGH, Metrics, histogram, render
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, Handshaken, Received, TlsFacts
from quillon.net.histogram import BOUNDS, Histogram
from tests.unit.log.test_macros import DELIVERED, FAILED, ID, MESSAGE, REFUSED, TLS

OUTBOUND = (
    'quillon_tls_parameters_total{direction="outbound",at="group-a/binding-a",version="TLSv1.2",'
    'cipher="ECDHE-RSA-AES128-GCM-SHA256",group="x25519",certificate="verified"} 1'
)
INBOUND = (
    'quillon_tls_parameters_total{direction="inbound",at="127.0.0.1:25",version="none",cipher="none",group="none",'
    'certificate="failed"} 1'
)


def test_metrics() -> None:
    metrics = Metrics()
    for event in (DELIVERED, FAILED, REFUSED, Received(1.0, MESSAGE, TLS)):
        metrics.count(event)
    metrics.count(Handshaken(1.0, "", "127.0.0.1:25", ID, TlsFacts(cause="not_tls"), False))
    text = render(dict(metrics.rows()))
    for line in (
        'quillon_binding_attempts_total{binding="group-a/binding-a",outcome="delivered"} 1',
        'quillon_binding_receptions_total{binding="group-a/binding-a"} 1',
        'quillon_domain_attempts_total{domain="other",outcome="delivered",version="TLSv1.2",cause="none"} 1',
        'quillon_domain_attempts_total{domain="other",outcome="transient_failure",version="none",cause="expired"} 1',
        OUTBOUND,
        INBOUND,
        'quillon_attempts_total{outcome="delivered",version="TLSv1.2",verified="yes",level="none"} 1',
        'quillon_attempts_total{outcome="transient_failure",version="none",verified="none",level="none"} 1',
        'quillon_rejections_total{code="550"} 1',
        'quillon_receptions_total{version="TLSv1.2",verified="yes",level="none"} 1',
        'quillon_handshakes_total{result="failed",version="none"} 1',
        'quillon_tls_failures_total{direction="inbound",cause="not_tls"} 1',
        'quillon_tls_failures_total{direction="outbound",cause="expired"} 1',
        "# TYPE quillon_tls_failures_total counter",
    ):
        assert line in text.splitlines()


def _to(domain: str) -> Attempted:
    return DELIVERED._replace(
        message=dataclasses.replace(MESSAGE, recipient=Mailbox("bob", domain), routing_domain=domain)
    )


def _by_domain(metrics: Metrics) -> dict[str, float]:
    found = re.compile('quillon_domain_attempts_total{domain="([^"]*)"')
    return {match[1]: count for name, count in metrics.rows() if (match := found.match(name)) is not None}


def test_domains_with_a_stanza_or_much_mail_have_series_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillon.log.metrics.MOST_LISTED", 3)
    metrics = Metrics({"bank.test"}.__contains__)
    for domain, count in (("bank.test", 1), ("much.test", ENOUGH + 4), ("little.test", ENOUGH - 1), ("a.test", ENOUGH)):
        for _ in range(count):
            metrics.count(_to(domain))
    # what came before a domain was listed stays where it was counted: no series ever shrinks
    others = 2 * (ENOUGH - 1) + ENOUGH - 1
    assert _by_domain(metrics) == {"bank.test": 1, "much.test": 5, "a.test": 1, "other": others}
    for _ in range(ENOUGH):
        metrics.count(_to("late.test"))
    assert _by_domain(metrics)["other"] == others + ENOUGH
    assert metrics.domains["late.test"]["delivered"] == ENOUGH


def test_only_so_many_domains_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillon.log.metrics.MOST_DOMAINS", 2)
    metrics = Metrics()
    for domain in ("a.test", "b.test", "a.test", "c.test"):
        metrics.count(_to(domain))
    assert {name: counts.total() for name, counts in metrics.domains.items()} == {"a.test": 2, "c.test": 1}


def test_a_histogram_is_printed_in_the_order_of_its_bounds() -> None:
    took = Histogram()
    for seconds in (0.001, 0.004, 0.004, 30.0):
        took.add(seconds)
    lines = render(dict(histogram("quillon_commit_seconds", took, what="spool log"))).splitlines()
    lines = lines[lines.index("# TYPE quillon_commit_seconds histogram") + 1 :]
    bounds = [line.partition('le="')[2].partition('"')[0] for line in lines if "_bucket" in line]
    counts = [int(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert bounds == [*map(str, BOUNDS), "+Inf"]
    assert counts == [1, 1, *[3] * (len(BOUNDS) - 2), 4]
    assert 'quillon_commit_seconds_count{what="spool log"} 4' in lines
    assert 'quillon_commit_seconds_sum{what="spool log"} 30.009' in lines
