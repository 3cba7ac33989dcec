"""The receiving machine: dialogs as data, and what no input may do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.lab.sink import reception_defaults
from quillon.mail.reply import Reply
from quillon.smtp import events as smtp
from quillon.smtp.server import ServerSession
from quillon.smtp.wire import MAX_COMMAND_LINE
from tests.support.dialog import Dialog

DIALOGS = sorted(Path(__file__).parents[2].joinpath("dialogs").glob("*.smtp"))


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: Path) -> None:
    Dialog(path).play()


def _session() -> ServerSession:
    session = ServerSession(reception_defaults(), "mx.test", "192.0.2.1", can_starttls=False)
    session.greet(Reply(220, "", "hello"))
    return session


def _drain(session: ServerSession) -> list[object]:
    events: list[object] = []
    while (event := session.next_event()) is not smtp.NEED_DATA and event is not smtp.PAUSED:
        events.append(event)
        if not isinstance(event, smtp.Data) or event.last:
            session.respond(None)
    return events


def test_a_line_too_long_is_refused_and_takes_no_memory() -> None:
    session = _session()
    for _ in range(100):
        session.receive(b"x" * MAX_COMMAND_LINE)
        _drain(session)
        assert session.buffered <= 2 * MAX_COMMAND_LINE
    session.receive(b"\r\nNOOP\r\n")
    _drain(session)
    assert session.data_to_send().endswith(b"500 5.5.2 line too long\r\n250 2.0.0 Ok\r\n")


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (b"AUTH PLAIN AHVzZXIAcGFzcw==", "AUTH PLAIN"),
        (b"auth login", "AUTH login"),
        (b"AUTH  AHVzZXIAcGFzcw==", "AUTH"),
        (b"AHVzZXIAcGFzcw==", "(unrecognized)"),
    ],
)
def test_who_listens_hears_no_password(line: bytes, heard: str) -> None:
    session, lines = _session(), list[str]()
    session.heard = lines.append
    session.receive(line + b"\r\n")
    session.next_event()
    assert lines == [heard]


def test_the_session_is_paused_until_it_is_answered() -> None:
    session = _session()
    session.receive(b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\n")
    assert isinstance(session.next_event(), smtp.Hello)
    assert session.next_event() is smtp.PAUSED
    session.respond(None)
    assert isinstance(session.next_event(), smtp.MailFrom)


def test_a_refused_command_establishes_nothing() -> None:
    session = _session()
    session.receive(b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n")
    session.next_event()
    session.respond(None)
    session.next_event()
    session.respond(Reply(550, "5.7.1", "no"))
    assert session.next_event() is smtp.NEED_DATA
    assert b"503 5.5.1 RCPT TO without MAIL FROM" in session.data_to_send()


_lines = st.sampled_from(
    [b"EHLO a.test", b"HELO a", b"MAIL FROM:<a@x.test>", b"MAIL FROM:<>", b"RCPT TO:<b@y.test>", b"DATA", b".", b"RSET",
     b"Subject: x", b"", b"NOOP", b"STARTTLS", b"..", b"\xff\x00", b"MAIL FROM:<a", b"VRFY x", b"a\rb", b"QUIT"]
)  # fmt: skip


@given(st.lists(st.tuples(_lines, st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])), max_size=20), st.data())
def test_no_input_raises_and_cuts_do_not_matter(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    wire = b"".join(line + end for line, end in lines)
    whole = _session()
    whole.receive(wire)
    events = _drain(whole)
    out = whole.data_to_send()
    cut = _session()
    at = 0
    others: list[object] = []
    while at < len(wire):
        step = data.draw(st.integers(1, 9))
        cut.receive(wire[at : at + step])
        others += _drain(cut)
        at += step
    assert cut.data_to_send() == out
    assert [e for e in events if not isinstance(e, smtp.Data)] == [e for e in others if not isinstance(e, smtp.Data)]
