"""AUTH to other servers: the sending machine, and mail from one server to another that demands it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import smtplib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from quillon.cli.main import main
from quillon.config.load import load
from quillon.delivery import inquiry
from quillon.delivery.connection import ConnectionServices
from quillon.delivery.dispatcher import Dispatcher, Share
from quillon.mail.address import Mailbox
from quillon.mail.event import Attempted, Event, Panic
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.mail.outcome import Stage
from quillon.net.clock import Deadlines, SystemClock
from quillon.policy.hook import Hook, Policy
from quillon.policy.tls import TlsHooks
from quillon.reception.accept import ResidentBodies
from quillon.smtp.client import ClientLogin, ClientSession, HostReady, LoggedIn, SessionBroken
from quillon.tls.context import Contexts
from tests.support.clients import MESSAGE
from tests.support.compiled import pure_only
from tests.support.exim import Exim
from tests.support.scripts import Answers
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread


def _session() -> ClientSession:
    session = ClientSession("client.test")
    session.receive(b"220 hello\r\n250-host\r\n250 AUTH PLAIN LOGIN\r\n")
    assert isinstance(session.next_event(), HostReady)
    session.data_to_send()
    return session


def test_plain() -> None:
    session = _session()
    session.log_in(ClientLogin("PLAIN", "bäcker", "grün"))
    assert session.data_to_send() == b"AUTH PLAIN " + base64.b64encode("\0bäcker\0grün".encode()) + b"\r\n"
    session.receive(b"235 2.7.0 fine\r\n")
    event = session.next_event()
    assert isinstance(event, LoggedIn)
    assert event.reply.code == 235


def test_login() -> None:
    session = _session()
    session.log_in(ClientLogin("LOGIN", "alice", "secret"))
    assert session.data_to_send() == b"AUTH LOGIN\r\n"
    session.receive(b"334 VXNlcm5hbWU6\r\n")
    assert session.data_to_send() == base64.b64encode(b"alice") + b"\r\n"
    session.receive(b"334 UGFzc3dvcmQ6\r\n")
    assert session.data_to_send() == base64.b64encode(b"secret") + b"\r\n"
    session.receive(b"535 5.7.8 no\r\n")
    event = session.next_event()
    assert isinstance(event, LoggedIn)
    assert str(event.reply) == "535 5.7.8 no"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_host_that_never_has_enough(mechanism: str) -> None:
    session = _session()
    session.log_in(ClientLogin(mechanism, "alice", "secret"))
    for _ in range(3):
        session.receive(b"334 Pw==\r\n")
    event = session.next_event()
    assert isinstance(event, SessionBroken)
    assert event.stage is Stage.AFTER_EHLO
    assert "secret" not in repr(ClientLogin(mechanism, "alice", "secret"))


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_credentials_that_a_host_repeats_go_nowhere(mechanism: str) -> None:
    session = _session()
    session.log_in(ClientLogin(mechanism, "alice", "open sesame"))
    sent = session.data_to_send().split()[-1]
    while mechanism == "LOGIN" and not sent.startswith(b"b3Blbi"):
        session.receive(b"334 x\r\n")
        sent = session.data_to_send().split()[-1]
    session.receive(
        b"501-5.5.4 AUTH PLAIN " + sent + b"\r\n501-5.5.4 " + sent[3:-2] + b"\r\n501 5.5.4 'open sesame'?\r\n"
    )
    event = session.next_event()
    assert isinstance(event, LoggedIn)
    assert event.reply.text == "AUTH PLAIN (hidden)\n(hidden)\n'(hidden)'?"
    session.receive(b"421 4.3.0 after " + sent + b"\r\n")
    event = session.next_event()
    assert isinstance(event, SessionBroken)
    assert event.reply.text == "after (hidden)"


# two servers --------------------------------------------------------------------------------------------------


def _receiver(port: int, sink: int, pki: Path, folder: Path, mechanisms: str = "AUTH PLAIN LOGIN") -> str:
    (folder / "users").write_text("quillon:open sesame\n")
    return f"""
    Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink}" ) }}
    Auth_Failure_Delay = 0
    ESMTP_Listener {{
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      Enable_Authentication = true
      AuthPlainParameters = [ uri = "file://{folder}/users" ]
      AuthLoginParameters = [ uri = "file://{folder}/users" ]
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "{mechanisms}" )
      Listen "127.0.0.1:{port}" {{ }}
    }}"""


def _sender(port: int, to: int, options: str, more: str = "") -> str:
    return f"""
    Domain "partner.test" {{ Routes = ( "127.0.0.1:{to}" ) TLS = required {options} }}
    {more}
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""


def _send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@sender.test", recipients or ["b@partner.test"], MESSAGE)


USER = 'Outbound_SMTP_Auth_User = "quillon" Outbound_SMTP_Auth_Pass = "open sesame"'


@pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
def test_by_options(server: Callable[..., Server], pki: Path, tmp_path: Path, kind: str) -> None:
    port, to = free_port(), free_port()
    with SinkThread() as sink:
        server(_receiver(to, sink.port, pki, tmp_path), name="r").start()
        server(_sender(port, to, f"Outbound_SMTP_Auth_Type = {kind} {USER}", "outbound_smtp_auth { }")).start()
        _send(port)
        _send(port)
        until(lambda: len(sink.messages) == 2, "delivery")
        text = sink.messages[0].data.decode()
    assert f"auth=pass ({kind}) smtp.auth=quillon" in text
    assert "with ESMTPSA" in text


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
def test_exim(server: Callable[..., Server], pki: Path, tmp_path: Path, kind: str) -> None:
    exim = Exim(tmp_path / "exim", pki, 1).start()
    try:
        for password, line in (
            ("open sesame", f"A={kind.lower()}:quillon"),
            ("wrong", "535 Incorrect authentication data"),
        ):
            port = free_port()
            options = f'Outbound_SMTP_Auth_Type = {kind} Outbound_SMTP_Auth_User = quillon Outbound_SMTP_Auth_Pass = "{password}"'
            running = server(_sender(port, exim.port, options), name=password.replace(" ", "-")).start()
            _send(port)
            until(lambda: line in exim.log(), "Exim's log")  # noqa: B023
            letter = "@D@" if password != "wrong" else "@T@"
            until(lambda: [x for x in running.log("mainlog.ec") if letter in x], "an outcome")  # noqa: B023
    finally:
        exim.stop()


@pytest.mark.parametrize(
    ("options", "mechanisms", "words"),
    [
        ('Outbound_SMTP_Auth_Type = PLAIN Outbound_SMTP_Auth_User = quillon Outbound_SMTP_Auth_Pass = wrong', "AUTH PLAIN", "454 4.7.0 [internal] the host refused AUTH (535 5.7.8 Sorry)"),
        (f"Outbound_SMTP_Auth_Type = PLAIN {USER}", "AUTH LOGIN", "454 4.7.0 [internal] the host does not offer the mechanism of AUTH (PLAIN)"),
        (f"Outbound_SMTP_Auth_Type = LOGIN {USER} TLS = no", "AUTH LOGIN", "454 4.7.0 [internal] AUTH needs TLS, and there is none"),
        ("Outbound_SMTP_Auth_Type = LOGIN Outbound_SMTP_Auth_User = quillon", "AUTH LOGIN", "454 4.7.0 [internal] no user or no password for AUTH"),
    ],
)  # fmt: skip
def test_mail_waits_without(
    server: Callable[..., Server], pki: Path, tmp_path: Path, options: str, mechanisms: str, words: str
) -> None:
    port, to = free_port(), free_port()
    receiver = server(_receiver(to, 1, pki, tmp_path, mechanisms), name="r").start()
    options = options.replace("TLS = no", "")
    sender = _sender(port, to, options)
    if words.endswith("there is none"):
        sender = sender.replace("TLS = required", "TLS = no")
    running = server(sender).start()
    _send(port)
    line = until(lambda: next((x for x in running.log("mainlog.ec") if "@T@" in x), ""), "a failure")
    assert words in line
    assert not [x for x in receiver.log("mainlog.ec") if "@R@" in x]
    assert "sesame" not in running.said()


LUA = """
local m = {}
function m:outbound_smtp_auth_config(msg, ac, vctx)
  local key = msg:context_get(msys.core.VCTX_MESS, "outbound_smtp_auth_key")
  if msg:rcptto():find("^broken") then error("no database") end
  if key == "bank" and not msg:rcptto():find("^nobody") then
    msg:context_set(msys.core.VCTX_MESS, "outbound_smtp_auth_type", "PLAIN")
    msg:context_set(msys.core.VCTX_MESS, "outbound_smtp_auth_user", "quillon")
    msys.sleep(0.05)
    local row = msys.db.fetch_row("secrets", "SELECT password FROM secrets WHERE user = ?", {"quillon"})
    msg:context_set(msys.core.VCTX_MESS, "outbound_smtp_auth_pass", row.password)
  end
end
msys.registerModule("auth", m)
"""
PYTHON = """
import asyncio

from quillon.policy.python import Delivery


async def outbound_smtp_auth_config(delivery: Delivery) -> None:
    await asyncio.sleep(0.05)
    if delivery.message.recipient.startswith("broken"):
        raise LookupError("no database")
    context = delivery.message_context
    if context["outbound_smtp_auth_key"] == "bank" and not delivery.message.recipient.startswith("nobody"):
        context["outbound_smtp_auth_type"] = "PLAIN"
        context["outbound_smtp_auth_user"] = "quillon"
        context["outbound_smtp_auth_pass"] = "open sesame"
"""


@pytest.mark.parametrize("language", ["lua", "python"])
def test_by_policy(server: Callable[..., Server], pki: Path, tmp_path: Path, language: str) -> None:
    port, to = free_port(), free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/auth.lua").write_text(LUA)
    (tmp_path / "q/auth.py").write_text(PYTHON)
    with contextlib.closing(sqlite3.connect(tmp_path / "q/secrets.db")) as secrets:
        secrets.execute("CREATE TABLE secrets (user TEXT, password TEXT)")
        secrets.execute("INSERT INTO secrets VALUES ('quillon', 'open sesame')")
        secrets.commit()
    stanza = {
        "lua": 'datasource "secrets" { uri = ( "sqlite:secrets.db" ) } scriptlet "scriptlet" { script "auth" { source = auth } }',
        "python": 'policy "auth" { module = auth.py }',
    }
    with SinkThread() as sink:
        receiver = server(_receiver(to, sink.port, pki, tmp_path), name="r").start()
        running = server(_sender(port, to, "Outbound_SMTP_Auth_Key = bank", stanza[language])).start()
        _send(port, "b@partner.test", "nobody@partner.test", "broken@partner.test")
        until(lambda: len(sink.messages) == 1, "delivery")
        # without credentials it came over a connection of its own, and was refused
        until(lambda: [x for x in running.log("mainlog.ec") if "@P@" in x and "530 5.7.0" in x], "a refusal")
        until(lambda: [x for x in running.log("mainlog.ec") if "@T@" in x and "451 4.3.0 policy error" in x], "a wait")
    assert any("outbound_smtp_auth_config error in auth: " in line for line in running.log("paniclog.ec"))
    assert sum("@R@" in line for line in receiver.log("mainlog.ec")) == 1


def test_mail_for_which_policy_is_still_asked_survives(
    server: Callable[..., Server], pki: Path, tmp_path: Path
) -> None:
    port, to = free_port(), free_port()
    (tmp_path / "q").mkdir()
    script = tmp_path / "q/auth.py"
    slow = PYTHON.replace("asyncio.sleep(0.05)", "asyncio.sleep(0.05 if delivery.message.recipient < 'c' else 100)")
    script.write_text(slow)
    with SinkThread() as sink:
        server(_receiver(to, sink.port, pki, tmp_path), name="r").start()
        config = _sender(port, to, "Outbound_SMTP_Auth_Key = bank", 'policy "auth" { module = auth.py }')
        running = server(config).start()
        for recipient in ("a@partner.test", "c@partner.test", "b@partner.test", "d@partner.test"):
            _send(port, recipient)
        until(lambda: len(sink.messages) >= 1, "delivery of those that do not wait")
        running.kill()
        running.start()
        time.sleep(1)
        # a reload that comes while they wait asks for them again
        script.write_text(PYTHON)
        running.reload()
        everybody = {f"{name}@partner.test" for name in "abcd"}  # a killed server may deliver once more
        until(lambda: {message.recipients[0] for message in sink.messages} == everybody, "delivery of all")
        assert running.stop() == 0


def test_asking_takes_no_connection_and_ends(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/auth.py").write_text(
        """import asyncio


async def outbound_smtp_auth_config(delivery):
    if delivery.message.recipient.endswith("slow.test"):
        await asyncio.sleep(1000)
"""
    )
    with SinkThread() as sink:
        config = f"""Server_Max_Outbound_Connections = 2 policy "auth" {{ module = auth.py }}
        Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink.port}" ) }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
        running = server(config).start()
        _send(port, *(f"{n}@slow.test" for n in range(5)))
        _send(port, "a@slow.test")
        time.sleep(0.5)
        _send(port)
        until(lambda: len(sink.messages) == 1, "delivery of what does not wait")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 10


@pure_only
def test_asking_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(*_: object) -> None:
        await asyncio.sleep(1000)

    class Kept:
        """A spool that is told of retries."""

        def __init__(self) -> None:
            self.told = asyncio.Event()

        def update(self, message: Message) -> None:
            self.told.set()

    (tmp_path / "c").write_text("Retry_Interval = 1000")
    config = load(str(tmp_path / "c")).config
    assert config is not None
    monkeypatch.setattr(inquiry, "PATIENCE", 0.01)
    events: list[Event] = []
    reports: list[str] = []
    clock = SystemClock()
    hooks = TlsHooks(Policy([Answers(Hook.OUTBOUND_AUTH, for_ever)], reports.append), "/")
    services = ConnectionServices(clock, Deadlines(clock), Contexts(clock.now), hooks)
    ids, now = IdSource(1), clock.now()
    batch = Batch(ids.next(now), Mailbox("a", "x.test"), Origin("192.0.2.1", "esmtp", NULL_ID), now, 1, b"x")
    message = Message(ids.next(now), batch, Mailbox("b", "y.test"), routing_domain="y.test")

    async def _pieces(messages: list[Message]) -> AsyncIterator[list[Message]]:
        yield messages

    async def play() -> None:
        spool = Kept()
        given: Any = (config, spool, ResidentBodies(0), None, None, None, services, "mx.test", Share(), events.append)
        made = Dispatcher(*given)
        made.start(_pieces([message]))
        await spool.told.wait()
        await made.stop(1)

    asyncio.run(asyncio.wait_for(play(), 30))
    (panic,) = [event.text for event in events if isinstance(event, Panic)]
    assert panic == "policy: outbound_smtp_auth_config waited longer than 0 s"
    (attempted,) = [event for event in events if isinstance(event, Attempted)]
    assert str(getattr(attempted.outcome, "reply", "")) == "451 4.3.0 policy error, please try later"
    assert message.tries == 1


def test_tls_that_a_reload_demands_holds_for_mail_whose_policy_is_being_asked(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    script = tmp_path / "q/auth.py"
    script.write_text(PYTHON.replace("0.05", "100"))
    with SinkThread() as sink:
        gateway = "Outbound_SMTP_Auth_Key = none"
        policy = 'policy "auth" { module = auth.py }'
        running = server(_sender(port, sink.port, gateway, policy).replace("TLS = required", "")).start()
        _send(port)
        time.sleep(0.5)  # until policy is asked
        running.configure(_sender(port, sink.port, gateway, policy))
        script.write_text("def outbound_smtp_auth_config(delivery):\n    pass\n")
        running.reload()
        until(lambda: [x for x in running.log("mainlog.ec") if "@T@" in x and "TLS" in x], "a wait")
        assert sink.messages == []


@pytest.mark.parametrize("value", ["5", "None", "'a\\0b'", "'\\udc80'"])
@pytest.mark.parametrize("option", ["type", "user", "pass"])
def test_what_no_host_can_be_told(server: Callable[..., Server], tmp_path: Path, option: str, value: str) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/auth.py").write_text(
        f"def outbound_smtp_auth_config(delivery):\n    delivery.message_context['outbound_smtp_auth_{option}'] = {value}\n"
    )
    running = server(_sender(port, 1, USER, 'policy "auth" { module = auth.py }')).start()
    _send(port)
    until(lambda: [x for x in running.log("mainlog.ec") if "@T@" in x and "451 4.3.0 policy error" in x], "a wait")
    (line,) = {x.partition(":")[2] for x in running.log("paniclog.ec")}
    assert line == f"policy: outbound_smtp_auth_{option} is no text that AUTH can carry"


@pytest.mark.parametrize("language", ["lua", "python"])
def test_options_that_are_not_set_are_not_there(
    server: Callable[..., Server], pki: Path, tmp_path: Path, language: str
) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/auth.lua").write_text(
        """local m = {}
        function m:outbound_smtp_auth_config(msg)
          local said = {}
          for _, n in ipairs({"type", "user", "pass", "key"}) do
            said[#said + 1] = n .. "=" .. msg:context_get(msys.core.VCTX_MESS, "outbound_smtp_auth_" .. n)
          end
          print(table.concat(said, ","))
        end
        msys.registerModule("auth", m)"""
    )
    (tmp_path / "q/auth.py").write_text(
        """def outbound_smtp_auth_config(delivery):
    found = {n: delivery.message_context.get("outbound_smtp_auth_" + n, "") for n in ("type", "user", "pass", "key")}
    delivery.message_context["outbound_smtp_auth_type"] = "<" + ",".join(f"{n}={v}" for n, v in found.items()) + ">"
"""
    )
    stanza = (
        'scriptlet "s" { script "auth" { source = auth } }'
        if language == "lua"
        else 'policy "auth" { module = auth.py }'
    )
    with SinkThread() as sink:
        running = server(_sender(port, sink.port, "TLS = no").replace("TLS = required", "") + stanza).start()
        _send(port)
        until(lambda: "type=,user=,pass=,key=" in "\n".join(running.log("paniclog.ec")).lower(), "what is there")
        if language == "lua":  # and nothing holds the message
            until(lambda: len(sink.messages) == 1, "delivery")


def test_no_log_has_a_password_that_reception_has_set(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text(
        """def validate_mailfrom(session):
    session.message_context["outbound_smtp_auth_pass"] = "open sesame"
    session.message_context["mine"] = "yes"


def validate_rcptto(session, message):
    session.reject(550, "no")
"""
    )
    running = server(_sender(port, 1, "", 'policy "p" { module = p.py }')).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        client.mail("a@sender.test")
        assert client.rcpt("b@partner.test")[0] == 550
    line = until(lambda: next((x for x in running.log("rejectlog.ec") if "mine=yes" in x), ""), "a rejection")
    until(lambda: '"mine"' in "\n".join(running.log("events.json")), "an event")
    assert "sesame" not in line + "\n".join(running.log("events.json"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("TLS = no Outbound_SMTP_Auth_Type = PLAIN", "its mail will wait"),
        ("TLS = required Outbound_SMTP_Auth_Type = LOGIN", "gives the password to whoever answers"),
        ("TLS = no Outbound_SMTP_Auth_Type = PLAIN Outbound_SMTP_Auth_In_Clear = true", ""),
        ("TLS = required TLS_Verify = host TLS_CA = ca.pem Outbound_SMTP_Auth_Type = PLAIN", ""),
        ("Outbound_SMTP_Auth_Type = false", ""),
    ],
)
def test_warnings(tmp_path: Path, pki: Path, options: str, words: str) -> None:
    options = options.replace("ca.pem", f"{pki}/ca.pem")
    file = tmp_path / "ecelerity.conf"
    file.write_text(f'Domain "partner.test" {{ {options} }} ESMTP_Listener {{ Listen "127.0.0.1:2525" {{ }} }}')
    found = [str(fault) for fault in load(str(file)).faults if "AUTH" in str(fault)]
    assert bool(found) is bool(words)
    assert all(words in fault for fault in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Domain "a.test" { Gateway = "127.0.0.9" Outbound_SMTP_Auth_Type = PLAIN }', 'has no effect: its mail goes to the gateway 127.0.0.9'),
        ('Domain "a.test" { Gateway = "127.0.0.9" TLS = required TLS_Verify = host TLS_CA = ca.pem } Domain "127.0.0.9" { Outbound_SMTP_Auth_Type = PLAIN }', ""),
        ('Outbound_SMTP_Auth_Type = PLAIN TLS = required TLS_Verify = host TLS_CA = ca.pem Domain "a.test" { TLS_Verify = no }', 'AUTH in Domain "a.test" gives the password'),
        ('Outbound_SMTP_Auth_Type = PLAIN TLS = required TLS_Verify = host TLS_CA = ca.pem Domain "a.test" { TLS = no }', "its mail will wait"),
    ],
)  # fmt: skip
def test_where_credentials_go(tmp_path: Path, pki: Path, text: str, words: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(text.replace("ca.pem", f"{pki}/ca.pem") + ' ESMTP_Listener { Listen "127.0.0.1:2525" { } }')
    found = [str(fault) for fault in load(str(file)).faults if "AUTH" in str(fault)]
    assert len(found) == bool(words), found
    assert not words or words in found[0], found


def test_an_unknown_mechanism_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text("Outbound_SMTP_Auth_Type = CRAM-MD5\n")
    (fault,) = [str(fault) for fault in load(str(file)).faults if "CRAM-MD5" in str(fault)]
    assert fault.startswith(f"{file}:1:")


def test_explain_does_not_show_passwords(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(
        _sender(2525, 2526, f"Outbound_SMTP_Auth_Type = PLAIN {USER}") + ' Outbound_SMTP_Auth_Pass = "x-sesame"'
    )
    for more in ([], ["--json"]):
        assert main(["explain", "-c", str(file), "--domain", "partner.test", *more]) == 0
        said = capsys.readouterr().out
        assert "outbound_smtp_auth_pass" in said
        assert "sesame" not in said
        assert "(hidden)" in said
