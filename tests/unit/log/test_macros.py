"""custom_logger's macros, tls_macros among them."""

from __future__ import annotations

import pytest

from quillon.log.macros import compile_format, stage_of
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, Received, Rejected, TlsFacts
from quillon.mail.message import Batch, Message, MessageId, Origin, TlsDemand
from quillon.mail.outcome import Delivered, PermanentFailure, Stage, TransientFailure
from quillon.mail.reply import parse_reply

ALL = ("custom_logger", "sieve", "outbound_tls")
ID = MessageId(1369767347, 25004, 1)
ORIGIN = Origin("10.0.1.1", "esmtp", ID, "inside", "group-p")
BATCH = Batch(
    ID, Mailbox("info", "postal.test"), ORIGIN, 1000.0, 266, None,
    connection_context={"tls_cipher": "TLS_AES_256_GCM_SHA384"}, message_context={"campaign": "spring\nsale"},
)  # fmt: skip
MESSAGE = Message(ID, BATCH, Mailbox("bob", "example.test"), "group-a", "binding-a", "gate.test", tries=2)
TLS = TlsFacts(
    "TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", 128, "x25519", True, "", "", "/CN=server.test", "/CN=ca.test",
    algorithm_bits=128, subject_cn="server.test", issuer_cn="ca.test",
)  # fmt: skip
TLS_REQUIRED = TlsDemand("required", "no", True, "")
DELIVERED = Attempted(
    1012.3456, MESSAGE, Delivered(parse_reply("250 2.0.0 ok"), "10.0.0.1"), TLS_REQUIRED, TLS, "mx", "10.9.9.9"
)
FAILED = Attempted(
    1012.3456,
    MESSAGE,
    TransientFailure(
        parse_reply("451 4.7.5 [internal] TLS negotiation failed"), Stage.HANDSHAKING_TLS, "10.0.0.1", "expired"
    ),
    TlsDemand("ifavailable", "no", True, ""),
    TlsFacts(cause="expired"),
)
REFUSED = Rejected(
    1012.3456, "10.1.1.1:4711", "10.0.0.2:25", ID, "inside", "group-p", "awaiting rcptto", parse_reply("550 5.7.1 no"), "core",
    {"pathway": "inside"}, {"mailfrom_string": "MAIL FROM:<a@b.test>", "mailfrom_localpart": "a", "mailfrom_domain": "b.test"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("form", "event", "line"),
    [
        ("%t@%i@%BI@%CI@D", DELIVERED, f"1012@{ID}@{ID}@{ID}@D"),
        ("%m@%M@%r@%R@%d@%g@%b@%B@%N", DELIVERED, "info@postal.test@bob@example.test@gate.test@group-a@binding-a@266@2"),
        ("%T@%T{0}@%T{3}@%us{3}", DELIVERED, "12.35@12@12.346@1012.346"),
        ("%H %local_ip %P %PG %p", DELIVERED, "10.0.0.1 10.9.9.9 inside group-p esmtp"),
        ("%n|%s|%S", FAILED, "451 4.7.5 [internal] TLS negotiation failed (expired)|handshaking TLS|17"),
        ("%outbound_tls:%outbound_tls_type:%outbound_tls_cipher", DELIVERED, "TLS:required:ECDHE-RSA-AES128-GCM-SHA256"),
        ("%outbound_tls_cipher_algbits/%outbound_tls_cipher_usebits %outbound_tls_protocol", DELIVERED, "128/128 TLSv1.2"),
        ("%outbound_tls_verified@%outbound_tls_issuer@%outbound_tls_subject", DELIVERED, "verified@ca.test@server.test"),
        ("%outbound_tls:outbound_tls", DELIVERED, "TLS"),
        ("%outbound_tls@%outbound_tls_verified@%outbound_tls_cause", FAILED, "unknown@@expired"),
        ("%vctx_conn{tls_cipher} %vctx_mess{campaign} %vctx_mess{none}", DELIVERED, "TLS_AES_256_GCM_SHA384 spring?sale "),
        ("%H@%n@%t@%m@%M@%p", REFUSED, "10.1.1.1@550 5.7.1 no@1012@a@b.test@esmtp"),
        ("%i@%BI@%S@%vctx_conn{pathway}", REFUSED, "00/00-00000-00000000@00/00-00000-00000000@22@inside"),
        ("100%, %", DELIVERED, "100%, %"),
        ("plain", DELIVERED, "plain"),
        ("%t{%Y}", DELIVERED, "1970"),
    ],
)  # fmt: skip
def test_macros(form: str, event: Attempted, line: str) -> None:
    assert compile_format(form, ALL).line(event) == line


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("%what", "%what is no macro"),
        ("%ix", "%ix is no macro"),
        ("%outbound_tls", "needs namespace"),
        ("%c", "bounces are not classified"),
        ("%h{Subject}", "header fields are not kept"),
        ("%vctx_conn", "needs a key"),
        ("%T{x}", "one digit"),
        ("%r:to", "there is no namespace r"),
    ],
)
def test_formats_that_cannot_be_honoured(form: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        compile_format(form, ("custom_logger", "sieve"))


def test_sanitize() -> None:
    reply = Delivered(parse_reply('250 it\'s "fine" | a'), "10.0.0.1")
    event = DELIVERED._replace(outcome=reply)
    assert compile_format("%n", ALL, ("special_characters",)).line(event) == "250 it?s ?fine? ? a"
    assert compile_format("%n", ALL, ("tr/|/-/", "non_printable")).line(event) == '250 it\'s "fine" - a'
    with pytest.raises(ValueError, match="sanitize = 'all'"):
        compile_format("%n", ALL, ("all",))


def test_stages() -> None:
    permanent = FAILED._replace(outcome=PermanentFailure(parse_reply("550 no"), Stage.AFTER_MAIL))
    events = (Received(1.0, MESSAGE, None), DELIVERED, FAILED, permanent, REFUSED)
    assert [stage_of(event) for event in events] == [
        "reception", "delivery", "transient_failure", "permanent_failure", "rejection"
    ]  # fmt: skip
