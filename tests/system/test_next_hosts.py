"""Real hosts that fail in one way each: what counts of what they said, and who is tried next."""

import email
import smtplib
import time
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path

import pytest

from quillon.lab.sink import inbound_tls
from quillon.mail.reply import Reply
from quillon.smtp.events import Data, MailFrom, RcptTo
from tests.support.clients import MESSAGE
from tests.support.scripted import Script, Scripted, Session
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

LARGE = MESSAGE + ("x" * 70 + "\r\n") * 40000  # goes through a file


@pytest.fixture
def peer() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(script: Script, host: str = "127.0.0.1", port: int = 0) -> Scripted:
        made.append(Scripted(script, host, port))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _listen(port: int, more: str) -> str:
    return f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
    Drain_Timeout = 1 {more}"""


def _send(port: int, *recipients: str, text: str = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("alice@example.test", recipients, text)


def _gateway(port: int, more: str = "") -> str:
    return f'Generate_Bounces = false Domain y.test {{ Gateway = "127.0.0.1:{port}" {more} }}'


def test_a_refusal_counts_though_the_host_hangs_up_behind_it(
    server: Callable[..., Server], peer: Callable[..., Scripted]
) -> None:
    def script(session: Session) -> None:
        session.say("220 peer.test ESMTP")
        session.hear()
        session.say("250-peer.test\r\n250 PIPELINING")
        for reply in ("250 ok", "250 ok", "550 5.1.1 nobody here"):
            session.hear()
            session.say(reply)

    port = free_port()
    running = server(_listen(port, _gateway(peer(script).port))).start()
    _send(port, "one@y.test", "two@y.test")
    found = running.wait_attempts("one@y.test", "two@y.test")
    assert (found["two@y.test"]["outcome"], found["two@y.test"]["reply"]) == (
        "permanent_failure",
        "550 5.1.1 nobody here",
    )
    assert (found["one@y.test"]["outcome"], found["one@y.test"]["tries"]) == ("transient_failure", 1)
    assert "connection closed by remote host" in found["one@y.test"]["reply"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_refusal_of_the_sender_counts_though_the_host_hangs_up_behind_it(
    server: Callable[..., Server], peer: Callable[..., Scripted], kept: bool
) -> None:
    def script(session: Session) -> None:
        session.say("220 peer.test ESMTP")
        session.hear()
        session.say("250 peer.test")
        if kept:
            for reply in ("250 ok", "250 ok", "354 go on"):
                session.hear()
                session.say(reply)
            while session.hear() not in (b".\r\n", b""):
                pass
            session.say("250 taken")
        session.hear()
        session.say("550 5.7.1 sender refused")

    port = free_port()
    running = server(_listen(port, "Max_Outbound_Connections = 1 " + _gateway(peer(script).port))).start()
    names = ["one@y.test", "two@y.test"] if kept else ["two@y.test"]
    for name in names:
        _send(port, name)
    event = running.wait_attempts(*names)["two@y.test"]
    assert (event["outcome"], event["reply"], event["tries"]) == ("permanent_failure", "550 5.7.1 sender refused", 1)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("text", [MESSAGE + "x\r\n" * 30000, LARGE], ids=["memory", "file"])
def test_a_refusal_in_the_middle_of_the_data_is_the_answer_to_them(
    server: Callable[..., Server], peer: Callable[..., Scripted], text: str, end: str
) -> None:
    def script(session: Session) -> None:
        session.mail()
        session.sock.recv(1000)
        session.say("552 5.3.4 too large for us")
        time.sleep(0.5)
        if end == "reset":
            session.reset()

    port = free_port()
    running = server(_listen(port, _gateway(peer(script).port))).start()
    _send(port, "one@y.test", text=text)
    event = running.wait_attempts("one@y.test")["one@y.test"]
    assert (event["outcome"], event["reply"]) == ("permanent_failure", "552 5.3.4 too large for us")


@pytest.mark.parametrize(
    ("option", "before", "words"),
    [
        ("EHLO_Timeout", 0, "no banner"),
        ("Mailfrom_Timeout", 2, "no MAIL FROM response"),
        ("Rcptto_Timeout", 3, "no RCPT TO response"),
    ],
)
def test_a_host_that_trickles_is_held_to_one_deadline_a_reply(
    server: Callable[..., Server], peer: Callable[..., Scripted], option: str, before: int, words: str
) -> None:
    def script(session: Session) -> None:
        for number, reply in enumerate(("220 peer.test", "250 peer.test", "250 ok", "250 ok")):
            if number:
                session.hear()
            if number >= max(before, 0) and number == before:
                for octet in "220-" + "x" * 500:
                    session.sock.sendall(octet.encode())
                    time.sleep(0.2)
            session.say(reply)

    port = free_port()
    running = server(_listen(port, f"{option} = 2 " + _gateway(peer(script).port))).start()
    begin = time.monotonic()
    _send(port, "one@y.test")
    event = running.wait_attempts("one@y.test")["one@y.test"]
    assert (event["outcome"], words in event["reply"]) == ("transient_failure", True), event
    assert time.monotonic() - begin < 8


def test_a_host_that_wants_the_tls_that_has_failed_has_not_refused_the_message(
    server: Callable[..., Server], peer: Callable[..., Scripted]
) -> None:
    def script(session: Session) -> None:
        session.say("220 peer.test ESMTP")
        while line := session.hear():
            if line.startswith(b"EHLO"):
                session.say("250-peer.test\r\n250 STARTTLS")
            elif line.startswith(b"STARTTLS"):
                session.say("454 4.7.0 TLS not available")
            else:
                session.say("530 5.7.0 Must issue a STARTTLS command first")

    port = free_port()
    running = server(_listen(port, _gateway(peer(script).port, "TLS = ifavailable"))).start()
    _send(port, "one@y.test")
    event = running.wait_attempts("one@y.test")["one@y.test"]
    assert (event["outcome"], event["cause"]) == ("transient_failure", "starttls_refused")
    assert "530 5.7.0 Must issue" in event["reply"]


def _pair(first: str, second: str, port: int, more: str = "") -> str:
    return f"""Generate_Bounces = false
    Domain y.test {{ Routes = ( "smtp://{first}?port={port}&type=a" "smtp://{second}?port={port}&type=a" ) {more} }}"""


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (MailFrom, Reply(451, "4.3.0", "later")),
        (RcptTo, Reply(450, "4.2.0", "greylisted")),
        (Data, Reply(451, "4.3.0", "disk full")),
        (RcptTo, Reply(421, "4.3.2", "closing")),
    ],
)
def test_the_second_host_takes_what_the_first_puts_off(server: Callable[..., Server], kind: type, reply: Reply) -> None:
    at = free_port()
    with (
        SinkThread(lambda event: reply if isinstance(event, kind) else None, "127.0.0.21", at),
        SinkThread(host="127.0.0.22", port=at) as good,
    ):
        port = free_port()
        running = server(_listen(port, _pair("127.0.0.21", "127.0.0.22", at))).start()
        _send(port, "one@y.test", "two@y.test")
        found = running.wait_attempts("one@y.test", "two@y.test")
        assert {event["outcome"] for event in found.values()} == {"delivered"}
        assert {event["remote_ip"] for event in found.values()} == {"127.0.0.22"}
        assert [event["tries"] for event in found.values()] == [1, 1]
        assert sorted(r for caught in good.messages for r in caught.recipients) == ["one@y.test", "two@y.test"]


def test_a_host_that_ends_at_the_final_dot_is_followed_by_the_next(
    server: Callable[..., Server], peer: Callable[..., Scripted]
) -> None:
    def script(session: Session) -> None:
        session.mail()
        while session.hear() not in (b".\r\n", b""):
            pass

    at = free_port()
    peer(script, "127.0.0.21", at)
    with SinkThread(host="127.0.0.22", port=at):
        port = free_port()
        running = server(_listen(port, _pair("127.0.0.21", "127.0.0.22", at))).start()
        _send(port, "one@y.test")
        event = running.wait_attempts("one@y.test")["one@y.test"]
        assert (event["outcome"], event["remote_ip"], event["tries"]) == ("delivered", "127.0.0.22", 1)


@pytest.mark.parametrize("engine", ["openssl", "gnutls"])
@pytest.mark.parametrize(
    ("broken", "cause"),
    [("expired", "expired"), ("wrong-name", "name_mismatch"), ("self-signed", "self_signed"), ("", "no_starttls")],
)
def test_one_broken_certificate_of_two_hosts_holds_nothing_and_weakens_nothing(
    server: Callable[..., Server], pki: Path, broken: str, cause: str, engine: str
) -> None:
    at = free_port()

    def tls(name: str) -> object:
        return inbound_tls(str(pki / f"{name}.pem"), str(pki / f"{name}.key")) if name else None

    with (
        SinkThread(host="127.0.0.21", port=at, tls=tls(broken)) as bad,  # type: ignore[arg-type]
        SinkThread(host="127.0.0.22", port=at, tls=tls("good")) as good,  # type: ignore[arg-type]
    ):
        port = free_port()
        strict = f"TLS = required TLS_Verify = host TLS_CA = {pki}/ca.pem"
        pair = _pair("127.0.0.21", "127.0.0.22", at, strict).replace("y.test", "mx.partner.test")
        running = server(f"TLS_Engine = {engine} " + _listen(port, pair)).start()
        _send(port, "one@mx.partner.test")
        event = running.wait_attempts("one@mx.partner.test")["one@mx.partner.test"]
        assert (event["outcome"], event["remote_ip"], event["tries"]) == ("delivered", "127.0.0.22", 1)
        assert (event["tls"]["level"], event["tls"]["matched"]) == ("host", "mx.partner.test")
        (failed,) = running.events("host_failure")
        assert (failed["host"], failed["cause"], failed["domain"]) == ("127.0.0.21", cause, "mx.partner.test")
        assert bad.messages == []
        assert good.messages[0].tls is not None


def test_mail_that_leads_back_here_fails_at_once(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(
        _listen(port, f"Generate_Bounces = false Remote_SMTP_Port = {port} Allow_IP_Literal = true")
    ).start()
    _send(port, "one@[127.0.0.1]", "two@[IPv6:::ffff:127.0.0.1]")
    found = running.wait_attempts("one@[127.0.0.1]", "two@[IPv6:::ffff:7f00:1]")
    for event in found.values():
        assert (event["outcome"], event["reply"][:9]) == ("permanent_failure", "554 5.4.6"), event
    assert len(running.events("reception")) == 2


@pytest.mark.parametrize("literal", ["[127.0.0.1]", "[IPv6:::ffff:127.0.0.1]", "[0.0.0.0]", "[IPv6:::ffff:0.0.0.0]"])
def test_prohibited_addresses_are_seen_however_they_are_written(server: Callable[..., Server], literal: str) -> None:
    with SinkThread() as sink:
        port = free_port()
        config = f"Prohibited_Hosts = ( 127.0.0.0/8 ) Generate_Bounces = false Remote_SMTP_Port = {sink.port}"
        running = server(_listen(port, config)).start()
        _send(port, f"one@{literal}")
        (event,) = running.wait_events("attempt")
        assert (event["outcome"], event["reply"][:9]) == ("permanent_failure", "551 5.4.6"), event
        assert sink.sink.sessions == 0


def test_recipients_that_fail_together_are_told_of_in_one_notification(server: Callable[..., Server]) -> None:
    def answer(event: object) -> Reply | None:
        if not isinstance(event, RcptTo) or event.mailbox.domain != "y.test":
            return None
        return Reply(550, "5.1.1", f"no {event.mailbox.local[0]} here")

    with SinkThread(answer) as sink:
        port = free_port()
        running = server(_listen(port, f'Gateway = "127.0.0.1:{sink.port}"')).start()
        text = "Subject: gr\u00fc\u00dfe\r\n\r\nx\r\n"
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            recipients = [f"{kind}{n}@y.test" for kind in "ab" for n in range(8)]
            client.sendmail("alice@example.test", recipients, text.encode())
        until(lambda: sink.messages, "the notification")
        running.wait_attempts("alice@example.test", *recipients)
        (notice,) = sink.messages
        assert notice.recipients == ("alice@example.test",)
        parsed = email.message_from_bytes(notice.data)
        parts = parsed.get_payload()
        assert isinstance(parts, list)
        _, status, original = parts
        assert isinstance(status, Message)
        assert isinstance(original, Message)
        assert len(status.get_payload()) == 17  # one block for the message, one for each recipient
        assert b"no a here" in notice.data
        assert b"no b here" in notice.data
        assert original["Content-Transfer-Encoding"] == "8bit"
        assert max(map(len, notice.data.split(b"\r\n"))) <= 998


def test_the_last_words_of_the_host_are_in_the_notification(server: Callable[..., Server]) -> None:
    def answer(event: object) -> Reply | None:
        is_ours = isinstance(event, RcptTo) and event.mailbox.domain == "y.test"
        return Reply(450, "4.2.1", "mailbox busy until tomorrow") if is_ours else None

    with SinkThread(answer) as sink:
        port = free_port()
        running = server(_listen(port, f'Gateway = "127.0.0.1:{sink.port}" Never_Retry = true')).start()
        _send(port, "one@y.test")
        until(lambda: sink.messages, "the notification")
        running.wait_attempts("alice@example.test")
        text = sink.messages[0].data.decode()
        assert "Status: 5.4.7" in text
        assert "Diagnostic-Code: smtp; 450 4.2.1 mailbox busy until tomorrow" in text
        assert "exceeded max retries without delivery" in text


def test_the_sender_is_told_that_a_message_is_late(server: Callable[..., Server]) -> None:
    def answer(event: object) -> Reply | None:
        is_ours = isinstance(event, RcptTo) and event.mailbox.domain == "y.test"
        return Reply(450, "4.2.1", "mailbox busy") if is_ours else None

    with SinkThread(answer) as sink:
        port = free_port()
        late = "Generate_Delay_DSN = true Delay_DSN_Retry_Interval = 1 Delay_DSN_Max_Retry_Interval = 86400"
        config = f'Gateway = "127.0.0.1:{sink.port}" Retry_Interval = 1 Max_Retry_Interval = 2 {late}'
        running = server(_listen(port, config)).start()
        _send(port, "one@y.test")
        until(lambda: sink.messages, "the notification")
        running.stop()
        text = sink.messages[0].data.decode()
        assert "Action: delayed" in text
        assert "Status: 4.2.1" in text
        assert "Will-Retry-Until: " in text
        assert "Subject: Mail Delivery Delayed" in text
        assert len(sink.messages) <= 2, "1 s, 3 s, 7 s"


def test_a_message_that_needs_8bitmime_fails_where_that_is_asked_for(server: Callable[..., Server]) -> None:
    def script(session: Session) -> None:
        session.mail()
        while session.hear() not in (b".\r\n", b""):
            pass
        session.say("250 ok")
        session.hear()

    peers = [Scripted(script), Scripted(script)]
    port = free_port()
    domains = " ".join(
        f'Domain {name}.test {{ Gateway = "127.0.0.1:{one.port}" {more} }}'
        for name, one, more in zip(("strict", "lax"), peers, ("Transform_8bitmime_Content = strict", ""), strict=True)
    )
    running = server(_listen(port, "Generate_Bounces = false " + domains)).start()
    text = "Subject: x\r\n\r\ngr\u00fc\u00dfe\r\n".encode()
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("alice@example.test", ["one@strict.test", "two@lax.test"], text)
    found = running.wait_attempts("one@strict.test", "two@lax.test")
    assert found["one@strict.test"]["reply"].startswith("554 5.6.3 ")
    assert found["two@lax.test"]["outcome"] == "delivered"
    for one in peers:
        one.close()
