"""Log lines, field for field, by the samples of the manual."""

import json

from hypothesis import given
from hypothesis import strategies as st

from quillon.log import lines
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, Handshaken, Panic, Received, Rejected, TlsFacts
from quillon.mail.message import Batch, Message, MessageId, Origin, TlsDemand
from quillon.mail.outcome import Delivered, Stage, failure
from quillon.mail.reply import parse_reply

BATCH = Batch(
    MessageId(2, 3736, 0), Mailbox("info", "postalengine.com"), Origin("10.0.1.1", "esmtp", MessageId(3, 4532, 0)), 1064868656.0, 201, b""
)  # fmt: skip
MESSAGE = Message(MessageId(1, 25004, 0), BATCH, Mailbox("bob", "example.fict"), "group-a", "binding-a")
COMMON = "00/00-25004-10000000@00/00-03736-20000000@00/00-04532-30000000"
NO_TLS = TlsDemand("no", "no", True, "")
TLS_REQUIRED = TlsDemand("required", "host", True, "", places=("q.conf:3:5", "q.conf:4:5", "", ""))


def test_reception() -> None:
    line = lines.reception(Received(1064868656.5, MESSAGE, None))
    tail = "R@bob@example.fict@info@postalengine.com@10.0.1.1@201@esmtp@group-a@binding-a"
    assert line == f"1064868656@{COMMON}@{tail}"


def test_delivery() -> None:
    MESSAGE.tries = 1
    line = lines.attempt(Attempted(1064868656.393, MESSAGE, Delivered(parse_reply("250 ok"), "10.0.0.1"), NO_TLS, None))
    assert line == f"1064868656@{COMMON}@D@example.fict@201@group-a@binding-a@0@0.393@10.0.0.1"


def test_failures() -> None:
    MESSAGE.tries = 2
    outcome = failure(parse_reply("421 no adequate servers"), Stage.DURING_STARTTLS, "10.0.0.1", "no_starttls")
    line = lines.attempt(Attempted(1064868674.53, MESSAGE, outcome, TLS_REQUIRED, None))
    tail = "T@example.fict@0@group-a@binding-a@15@1@18.53@10.0.0.1@421 no adequate servers (no_starttls)"
    assert line == f"1064868674@{COMMON}@{tail}"
    outcome = failure(parse_reply("552 No such @ account"), Stage.AFTER_RCPT, "10.0.0.1", sent=31)
    line = lines.attempt(Attempted(1064868660.0, MESSAGE, outcome, NO_TLS, None))
    assert line.split("@", 13)[4:] == [
        "P", "example.fict", "31", "group-a", "binding-a", "5", "1", "4.00", "10.0.0.1", "552 No such @ account",
    ]  # fmt: skip


def test_heartbeats() -> None:
    assert lines.heartbeat(1251470342.9) == "1251470342@@@@M"
    assert lines.reject_heartbeat(1252064908.0) == "1252064908: Marker 1"


def test_rejection() -> None:
    event = Rejected(
        1236672125.0, "10.79.25.142:42601", "10.79.25.142:25", MessageId(0, 7149, 0), "default", "default",
        "awaiting mailfrom", parse_reply("550 5.7.1 relaying denied"), "scriptlet",
        {"pathway": "default", "ehlo_string": "EHLO rh52-node1"}, {"mailfrom_domain": ""},
    )  # fmt: skip
    assert lines.rejection(event) == (
        '1236672125: R="10.79.25.142:42601" L="10.79.25.142:25" C="00/00-07149-00000000" PATH="default"'
        ' PATH_GRP="default" P="awaiting mailfrom" E=550 M=scriptlet'
        ' CTXCONN=[pathway=default,ehlo_string="EHLO rh52-node1"] CTXMESS=[mailfrom_domain=] 5.7.1 relaying denied'
    )


def test_panic() -> None:
    assert (
        lines.panic(Panic(1251382104.2, "datasource: failed\nto prepare")) == "1251382104:datasource: failed?to prepare"
    )


def test_json_tells_what_tls_was() -> None:
    facts = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, "X25519", True, "", "", "/CN=a", "/CN=ca", "ab")
    row = json.loads(lines.as_json(Handshaken(1.0, "a:1", "b:2", MessageId(0, 1, 0), facts, True)))
    assert row["event"] == "handshake"
    assert (row["tls"]["protocol"], row["tls"]["verified"], row["tls"]["subject"]) == ("TLSv1.3", True, "/CN=a")


@given(st.text(max_size=40))
def test_nothing_breaks_a_line_or_moves_a_field(text: str) -> None:
    batch = Batch(BATCH.id, Mailbox(text, "x.test"), BATCH.origin, 0.0, 1, b"")
    line = lines.reception(Received(1.0, Message(MESSAGE.id, batch, Mailbox(text, text)), None))
    assert line.count("@") == 13
    assert not set(line) & set("\r\n\x00")
