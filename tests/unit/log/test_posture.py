"""Days of partners: counted, kept, put together, and what changed between them."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from quillon.log import posture
from quillon.log.posture import DailyPosture, Day, merged, of_row
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, HostFailed, Notice, TlsFacts
from quillon.mail.outcome import Delivered, Stage, TransientFailure
from quillon.mail.reply import parse_reply

NOON = 1_780_000_000.0
GOOD = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", level="host", fingerprint="aa", ends=NOON + 1e6)
BAD = TlsFacts("TLSv1.2", "ECDHE", group="X25519", cause="expired", fingerprint="bb")


def attempted(tls: TlsFacts | None, outcome: Any = None, **more: Any) -> Attempted:
    message: Any = SimpleNamespace(recipient=Mailbox("b", more.pop("to", "bank.test")))
    outcome = outcome or Delivered(parse_reply("250 ok"), "192.0.2.1")
    return Attempted(NOON, message, outcome, None, tls, more.pop("host", "mx.bank.test"), **more)  # type: ignore[arg-type]


def failed(cause: str, ip: str = "192.0.2.1", tls: TlsFacts | None = None) -> HostFailed:
    outcome = TransientFailure(parse_reply("451 4.7.5 no"), Stage.IDLE, ip, cause=cause)
    return HostFailed(NOON, "bank.test", "mx.bank.test", outcome, tls)


def test_what_counts_and_what_does_not() -> None:
    today = DailyPosture("2026-05-28")
    seen: list[Any] = [
        attempted(GOOD),
        attempted(None, would_wait="no_starttls"),
        failed("handshake_eof"),
        failed("expired", tls=BAD),
        attempted(GOOD, TransientFailure(parse_reply("451 4.7.5 no"), Stage.IDLE, "192.0.2.1", cause="expired")),
        failed("", ip=""),
        Notice(NOON, "x"),
    ]
    assert [today.see(event) for event in seen] == [True] * 4 + [False] * 3
    (row,) = today.of("bank.test")
    assert row == {
        "day": "2026-05-28",
        "host": "mx.bank.test",
        "attempts": 4,
        "clear": 1,
        "protocols": {"TLSv1.3": 1, "TLSv1.2": 1},
        "ciphers": {"TLS_AES_256_GCM_SHA384": 1, "ECDHE": 1},
        "groups": {"none": 1, "X25519": 1},
        "levels": {"host": 1, "none": 1},
        "causes": {"handshake_eof": 1, "expired": 1},
        "certificates": {"aa": 1, "bb": 1},
        "would_wait": {"no_starttls": 1},
        "ends": {"aa": NOON + 1e6},
    }
    again = DailyPosture("2026-05-28")
    again.read(json.loads(json.dumps(today.rows())))
    again.see(attempted(GOOD))
    assert again.of("bank.test")[0]["attempts"] == 5
    assert today.of("other.test") == []


def test_hosts_beyond_measure_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posture, "MOST", 2)
    today = DailyPosture("2026-05-28")
    assert [today.see(attempted(GOOD, to=f"{n}.test")) for n in (1, 2, 3, 1)] == [True, True, False, True]
    assert today.left_out == 1


@pytest.mark.parametrize("rows", [{"x": [{}]}, {"x": 4}, [], {"x": [{"day": "d", "host": "h", "attempts": "many"}]}])
def test_what_is_no_file_of_ours(rows: Any) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        DailyPosture("2026-05-28").read(rows)


def day(number: int, **counts: Any) -> Day:
    made = Day(f"2026-05-{number:02}", "mx.bank.test", 1)
    for name, value in counts.items():
        setattr(made, name, Counter(value) if isinstance(value, list) else value)
    return made


def test_days_of_several_workers_are_one_and_changes_are_told() -> None:
    days = [
        day(3, clear=1, causes=["no_starttls"]),
        day(1, protocols=["TLSv1.3"], certificates=["aa"], levels=["host"], standards=["dane"]),
        day(1, protocols=["TLSv1.2"], certificates=["aa"], levels=["host"]),
        day(2, protocols=["TLSv1.2"], certificates=["bb"], levels=["none"]),
    ]
    found = merged(days)
    assert [(one.day, one.attempts) for one in found] == [("2026-05-01", 2), ("2026-05-02", 1), ("2026-05-03", 1)]
    assert [one.changes for one in found] == [
        [],
        ["lost TLSv1.3", "has another certificate", "fails verification", "dane is gone"],
        ["lost TLS", "first no_starttls"],
    ]
    assert of_row(found[0].row()) == found[0]
