"""What is counted of handshakes, and the report of a day (RFC 8460)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.standards.tlsrpt import (
    MOST,
    RESULTS,
    DataPoint,
    HandshakeCounts,
    PolicyFound,
    day_of,
    destinations,
    result_of,
)
from quillon.tls.causes import CAUSES

STS = PolicyFound("sts", "bank.test", ("version: STSv1", "mode: enforce"), ("mx.bank.test",))
NONE = PolicyFound("no-policy-found", "bank.test")
GOOD = DataPoint(1_795_910_400.0, "bank.test", STS, "", "", "192.0.2.9", "mx.bank.test", "192.0.2.1")
BAD = GOOD._replace(result="certificate-expired", reason="expired")


def counted(*points: DataPoint) -> HandshakeCounts:
    counts = HandshakeCounts()
    for point in points:
        counts.add(point)
    return counts


def test_a_report_has_what_the_rfc_wants() -> None:
    counts = counted(GOOD, GOOD, BAD, GOOD._replace(policy=NONE), GOOD._replace(domain="other.test"))
    report = counts.report("bank.test", "2026-11-29", "Quillon", "tls@quillon.test", "2026-11-29-1")
    assert report["date-range"] == {
        "start-datetime": "2026-11-29T00:00:00Z",
        "end-datetime": "2026-11-29T23:59:59Z",
    }
    assert (report["organization-name"], report["contact-info"]) == ("Quillon", "tls@quillon.test")
    none, sts = report["policies"]
    assert none["policy"] == {"policy-type": "no-policy-found", "policy-domain": "bank.test"}
    assert sts["policy"] == {
        "policy-type": "sts",
        "policy-domain": "bank.test",
        "policy-string": ["version: STSv1", "mode: enforce"],
        "mx-host": ["mx.bank.test"],
    }
    assert sts["summary"] == {"total-successful-session-count": 2, "total-failure-session-count": 1}
    assert sts["failure-details"] == [
        {
            "result-type": "certificate-expired",
            "sending-mta-ip": "192.0.2.9",
            "receiving-mx-hostname": "mx.bank.test",
            "receiving-ip": "192.0.2.1",
            "failed-session-count": 1,
            "failure-reason-code": "expired",
        }
    ]


def test_counts_of_several_workers_add_up_over_files() -> None:
    one, two, both = counted(GOOD, BAD, BAD), counted(GOOD, BAD), HandshakeCounts()
    for part in (one, two):
        both.read(json.loads(json.dumps(part.rows())))
    assert both.report("bank.test", "2026-11-29", "q", "c", "1") == counted(GOOD, GOOD, BAD, BAD, BAD).report(
        "bank.test", "2026-11-29", "q", "c", "1"
    )
    assert both.domains() == ["bank.test"]
    assert not HandshakeCounts()


def test_a_flood_of_different_failures_is_bounded_and_counted() -> None:
    counts = counted(*(BAD._replace(ip=f"192.0.{n >> 8}.{n & 255}") for n in range(MOST + 50)))
    (policy,) = counts.report("bank.test", "2026-11-29", "q", "c", "1")["policies"]
    assert policy["summary"]["total-failure-session-count"] == MOST + 50
    assert len(policy["failure-details"]) == MOST + 1


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_is_a_result_type(cause: str) -> None:
    assert result_of(cause) in RESULTS
    assert result_of(f"alert_{cause}") == "validation-failure"


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=TLSRPTv1; rua=mailto:tls@bank.test"], ["mailto:tls@bank.test"]),
        (["v=TLSRPTv1;rua=mailto:a@b.test,https://r.test/v1"], ["mailto:a@b.test", "https://r.test/v1"]),
        (["v=spf1 -all", "v=TLSRPTv1 ; rua=https://r.test/ ; x=y"], ["https://r.test/"]),
        (["v=TLSRPTv1; rua=http://r.test/, ftp://x, mailto:nobody"], []),
        (["v=TLSRPTv1; rua=mailto:a@b.test", "v=TLSRPTv1; rua=mailto:a@b.test"], []),
        (["v=TLSRPTv2; rua=mailto:a@b.test"], []),
        ([], []),
    ],
)
def test_where_reports_are_wanted(texts: list[str], found: list[str]) -> None:
    assert destinations(texts) == found


@given(st.text(max_size=200))
def test_whatever_stands_in_dns_is_a_list_of_addresses(text: str) -> None:
    assert all(uri.lower().startswith(("mailto:", "https:")) for uri in destinations(["v=TLSRPTv1;" + text]))


def test_the_hook_is_told_in_the_words_of_the_manual() -> None:
    assert BAD.as_json() == {
        "epoch": 1_795_910_400,
        "type": 0,
        "policy": {
            "policy-type": "sts",
            "policy-domain": "bank.test",
            "policy-string": ["version: STSv1", "mode: enforce"],
            "mx-host": ["mx.bank.test"],
        },
        "result-type": "certificate-expired",
        "failure-reason-code": "expired",
        "sending-mta-ip": "192.0.2.9",
        "receiving-mx-hostname": "mx.bank.test",
        "receiving-ip": "192.0.2.1",
    }
    assert GOOD.as_json()["type"] == 1
    assert day_of(GOOD.time) == "2026-11-29"
