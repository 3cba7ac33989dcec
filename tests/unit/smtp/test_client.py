"""The sending machine against scripted hosts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.mail.address import Mailbox
from quillon.mail.outcome import Stage
from quillon.smtp import client as smtp
from quillon.smtp.client import (
    ClientSession,
    Done,
    GoAhead,
    HostReady,
    MailTransaction,
    NoGoAhead,
    SendBody,
    SessionBroken,
)

BOB, EVE = Mailbox("bob", "y.test"), Mailbox("eve", "y.test")
EHLO = b"250-mx.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 SIZE 1000\r\n"


def _events(session: ClientSession, data: bytes) -> list[Any]:
    session.receive(data)
    out = []
    while (event := session.next_event()) is not smtp.NEED_DATA:
        out.append(event)
    return out


def _ready(ehlo: bytes = EHLO) -> ClientSession:
    session = ClientSession("me.test")
    assert _events(session, b"220 hi\r\n") == []
    assert session.data_to_send() == b"EHLO me.test\r\n"
    events = _events(session, ehlo)
    assert isinstance(events[0], HostReady)
    return session


def test_nothing_is_said_before_the_caller_has_decided() -> None:
    assert _ready().data_to_send() == b""


def test_pipelined_transaction() -> None:
    session = _ready()
    session.send(MailTransaction(Mailbox("a", "x.test"), [BOB, EVE], 5))
    expected = b"MAIL FROM:<a@x.test> SIZE=5\r\nRCPT TO:<bob@y.test>\r\nRCPT TO:<eve@y.test>\r\nDATA\r\n"
    assert session.data_to_send() == expected
    assert isinstance(_events(session, b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")[0], SendBody)
    session.body_sent()
    (done,) = _events(session, b"250 2.0.0 taken\r\n")
    assert [(reply.code, stage) for reply, stage in done.results] == [
        (250, Stage.READING_CONFIRMATION),
        (550, Stage.AFTER_RCPT),
    ]


def test_without_pipelining_each_command_waits() -> None:
    session = _ready(b"250-mx\r\n250 8BITMIME\r\n")
    session.send(MailTransaction(Mailbox("", ""), [BOB], 5, say_eight_bit=True))
    assert session.data_to_send() == b"MAIL FROM:<> BODY=8BITMIME\r\n"
    assert _events(session, b"250 ok\r\n") == []
    assert session.data_to_send() == b"RCPT TO:<bob@y.test>\r\n"
    (done,) = _events(session, b"450 4.2.1 later\r\n")
    assert isinstance(done, Done)
    assert done.results[0][1] is Stage.AFTER_RCPT


def test_data_taken_without_recipients_is_ended_empty() -> None:
    session = _ready()
    session.send(MailTransaction(Mailbox("a", "x.test"), [BOB], 5))
    session.data_to_send()
    assert _events(session, b"250 ok\r\n550 no\r\n354 go\r\n") == []
    assert session.data_to_send() == b".\r\n"
    (done,) = _events(session, b"554 no valid recipients\r\n")
    assert done.results[0][0].code == 550


def test_refused_mail_is_the_answer_for_all() -> None:
    session = _ready()
    session.send(MailTransaction(Mailbox("a", "x.test"), [BOB, EVE], 5))
    (done,) = _events(session, b"451 4.3.0 busy\r\n503 x\r\n503 x\r\n503 x\r\n")
    assert {(reply.code, stage) for reply, stage in done.results} == {(451, Stage.AFTER_MAIL)}


def test_starttls_and_ehlo_again() -> None:
    session = _ready()
    session.start_tls()
    assert session.data_to_send() == b"STARTTLS\r\n"
    assert isinstance(_events(session, b"220 go\r\n")[0], GoAhead)
    session.tls_started()
    assert session.data_to_send() == b"EHLO me.test\r\n"
    (ready,) = _events(session, b"250-mx\r\n250 HELP\r\n")
    assert "STARTTLS" not in ready.extensions


def test_replies_in_clear_behind_the_go_ahead_are_no_go_ahead() -> None:
    session = _ready()
    session.start_tls()
    (event,) = _events(session, b"220 go\r\n250 injected\r\n")
    assert isinstance(event, NoGoAhead)
    assert event.injected


def test_refused_starttls() -> None:
    session = _ready()
    session.start_tls()
    (event,) = _events(session, b"454 4.7.0 no key\r\n")
    assert isinstance(event, NoGoAhead)
    assert event.reply.code == 454


def test_an_old_host_gets_helo_and_offers_nothing() -> None:
    session = ClientSession("me.test")
    _events(session, b"220 hi\r\n")
    session.data_to_send()
    _events(session, b"502 what\r\n")
    assert session.data_to_send() == b"HELO me.test\r\n"
    (ready,) = _events(session, b"250 mx STARTTLS\r\n")
    assert ready.extensions == {}


@pytest.mark.parametrize(
    ("data", "code", "remote"),
    [
        (b"554 no service\r\n", 554, True),
        (b"hello\r\n", 451, False),
        (b"220-a\r\n250 b\r\n", 451, False),
        (b"x" * 5000, 451, False),
        (b"220 ok\r\n220 ok\r\n220 extra\r\n", 451, False),
    ],
)
def test_broken_hosts(data: bytes, code: int, remote: bool) -> None:
    session = ClientSession("me.test")
    broken = next(event for event in _events(session, data) if isinstance(event, SessionBroken))
    assert (broken.reply.code, broken.remote) == (code, remote)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], "no banner"),
        ([b"220 hi\r\n"], "no HELO/EHLO response"),
    ],
)
def test_silence_is_named_by_its_stage(steps: list[bytes], text: str) -> None:
    session = ClientSession("me.test")
    for step in steps:
        _events(session, step)
    session.timed_out()
    event = session.next_event()
    assert isinstance(event, SessionBroken)
    assert text in event.reply.text


def test_what_a_host_says_cannot_break_a_log_line() -> None:
    session = ClientSession("me.test")
    (broken,) = _events(session, b"554 a\x00b\x1bc\xff@\r\n")
    assert broken.reply.text == "a?b?c?@"


@given(
    st.lists(
        st.sampled_from([b"220 a", b"250-x", b"250 x", b"354 g", b"554 n", b"\r\n", b"\n", b"junk", b"2"]), max_size=25
    )
)
def test_no_host_raises_out_of_the_machine(pieces: list[bytes]) -> None:
    session = ClientSession("me.test")
    for piece in pieces:
        for event in _events(session, piece):
            if isinstance(event, HostReady) and not session.closed:
                session.send(MailTransaction(Mailbox("a", "x.test"), [BOB, EVE], 5))
            elif isinstance(event, SendBody):
                session.body_sent()
    session.connection_lost()
