"""What partners did with TLS, and what stricter settings would have held back."""

from __future__ import annotations

from typing import Any

import pytest

from quillon.evidence.posture import UNKNOWN, dry_run, held, posture


def attempt(
    day: str = "2026-11-01",
    *,
    to: str = "bank.test",
    protocol: str = "TLSv1.3",
    level: str = "host",
    verified: bool | None = True,
    cause: str = "",
    outcome: str = "delivered",
    certificate: str = "aa",
    standard: str = "",
    kind: str = "attempt",
) -> dict[str, Any]:
    tls: dict[str, Any] | None = None
    if protocol or cause:
        tls = {
            "protocol": protocol,
            "cipher": "TLS_AES_256_GCM_SHA384" if protocol else "",
            "group": "X25519" if protocol else "",
            "level": level if protocol else "none",
            "verified": verified if protocol else None,
            "cause": cause,
            "certificates": [certificate] if protocol else [],
            "standard": standard,
        }
    host = {"name": f"mx.{to}", "ip": "192.0.2.1", "from": ""}
    return {"kind": kind, "at": f"{day}T10:00:00.000000Z", "to": to, "host": host, "tls": tls, "outcome": outcome}


CLEAR = attempt(protocol="")
FAILED = attempt(protocol="", cause="handshake_eof")
UNCHECKED = attempt(level="none", verified=None)
WRONG_NAME = attempt(level="ca", verified=False, cause="name_mismatch")
EXPIRED = attempt(level="none", verified=False, cause="expired")
DANE = attempt(level="dane", standard="dane")


@pytest.mark.parametrize(
    ("row", "ifavailable_no", "required_no", "required_ca", "required_host", "ifavailable_host"),
    [
        (attempt(), "", "", "", "", ""),
        (CLEAR, "", "no_starttls", "no_starttls", "no_starttls", ""),
        (FAILED, "", "handshake_eof", "handshake_eof", "handshake_eof", ""),
        (UNCHECKED, "", "", UNKNOWN, UNKNOWN, UNKNOWN),
        (WRONG_NAME, "", "", "", "name_mismatch", "name_mismatch"),
        (EXPIRED, "", "", "expired", "expired", "expired"),
        (DANE, "", "", "", "", ""),
    ],
)
def test_what_would_have_waited(
    row: dict[str, Any],
    ifavailable_no: str,
    required_no: str,
    required_ca: str,
    required_host: str,
    ifavailable_host: str,
) -> None:
    assert held(row, "ifavailable", "no") == ifavailable_no
    assert held(row, "required", "no") == required_no
    assert held(row, "required", "ca") == required_ca
    assert held(row, "required", "host") == required_host
    assert held(row, "required", "optional") == required_no
    assert held(row, "ifavailable", "host") == ifavailable_host


def test_a_dry_run_adds_up_by_domain_the_worst_first() -> None:
    rows = [attempt(to="good.test"), EXPIRED, attempt(), CLEAR, attempt(to="blind.test", level="none", verified=None)]
    rows += [attempt(outcome="transient", protocol="", cause="no_starttls"), attempt(kind="host", protocol="")]
    worst, blind, good = dry_run(rows, "required", "host")
    assert (worst.domain, worst.delivered, worst.waiting, worst.unknown) == ("bank.test", 3, 2, 0)
    assert worst.causes == {"expired": 1, "no_starttls": 1}
    assert worst.hosts == {"mx.bank.test": 2}
    assert (blind.domain, blind.unknown, blind.bears) == ("blind.test", 1, False)
    assert (good.domain, good.bears) == ("good.test", True)


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (attempt(), attempt("2026-11-02"), []),
        (attempt(), attempt("2026-11-02", protocol="TLSv1.2"), ["lost TLSv1.3", "has TLSv1.2"]),
        (attempt(), attempt("2026-11-02", protocol=""), ["lost TLS"]),
        (CLEAR, attempt("2026-11-02"), ["has TLS"]),
        (attempt(), attempt("2026-11-02", certificate="bb"), ["has another certificate"]),
        (
            attempt(),
            attempt("2026-11-03", level="none", verified=False, cause="expired"),
            ["fails verification", "first expired"],
        ),
        (DANE, attempt("2026-11-02", level="none", verified=None), ["fails verification", "dane is gone"]),
    ],
)
def test_changes_are_marked(before: dict[str, Any], now: dict[str, Any], changes: list[str]) -> None:
    first, second = posture([now, before])
    assert first.changes == []
    assert (second.day, second.changes) == (now["at"][:10], changes)


def test_each_host_has_a_day_of_its_own_and_attempts_without_a_host_none() -> None:
    nowhere = attempt()
    nowhere["host"] = {"name": "", "ip": "", "from": ""}
    other = attempt(to="two.test")
    days = posture([attempt(), attempt(), CLEAR, other, nowhere])
    assert [(day.host, day.attempts, day.clear) for day in days] == [("mx.bank.test", 3, 1), ("mx.two.test", 1, 0)]
    assert days[0].protocols == {"TLSv1.3": 2}
