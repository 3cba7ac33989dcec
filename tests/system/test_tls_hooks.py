"""What policy may say about TLS, in Lua and in Python, asked by a running server."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.net.eager import at_once
from quillon.policy.context import Context
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Hook, Policy, PolicyError, Session
from quillon.policy.python_module import load_module
from quillon.policy.tls import HookFailed, Remote, TlsHooks
from quillon.tls.certificate import Certificate
from quillon.tls.verdict import TlsVerdict
from tests.support.clients import MESSAGE, context
from tests.support.server import Server, free_port
from tests.support.sinks import SinkThread
from tests.unit.tls.test_engines import outbound

LUA = """
local m = {}
function m:inbound_smtp_tls_verify_callback(mc, ssl_ctx, ok, subject, issuer, cert)
  mc.ctx:set(msys.core.VCTX_CONN, "seen", tostring(ok ~= 0) .. " " .. subject .. " " .. cert.cause .. " " .. cert.san)
  if cert.sha256 == "@PIN@" then return true end
  if subject == "/CN=client.bank.fi" and ok == 1 then return 1 end
end
function m:inbound_smtp_tls_post_accept(mc)
  if mc.ctx:get(msys.core.VCTX_CONN, "tls_client_verify_error") == "unknown_issuer" then
    mc.ctx.code, mc.ctx.disconnect = 421, 1
    mc.ctx:set(msys.core.VCTX_CONN, "_tls_note", "421 4.7.0 not you")
  end
end
function m:get_inbound_tls_parameters(ac, vctx, params)
  if vctx:get(msys.core.VCTX_CONN, "pathway") == "without" and params.use_tls == 1 then params.use_tls = 0 end
  if vctx:get(msys.core.VCTX_CONN, "pathway") == "strict" then params.tls_verify = "require" end
  if vctx:get(msys.core.VCTX_CONN, "pathway") == "broken" then error("no parameters today") end
end
function m:get_outbound_tls_parameters(msg, params)
  if msg:rcptto() == "strict@partner.test" then params.use_tls = "required" end
  if msg:rcptto() == "broken@partner.test" then error("no decision") end
  if msg:rcptto() == "typo@partner.test" then params.use_tls = "requierd" end
end
function m:validate_mailfrom(str, ac, vctx) return msys.core.VALIDATE_CONT end
msys.registerModule("tls", m)
"""

PYTHON = """
from quillon.policy.python import Certificate, Message, Remote, Session, TlsParameters


def inbound_smtp_tls_verify_callback(session: Session, verified: bool, certificate: Certificate) -> bool | None:
    shown = f"{str(verified).lower()} {certificate.subject} {certificate.cause} {','.join(certificate.names)}"
    session.connection_context["seen"] = shown
    return True if certificate.sha256 == "@PIN@" else None


def inbound_smtp_tls_post_accept(session: Session) -> None:
    if session.connection_context.get("tls_client_verify_error") == "unknown_issuer":
        session.disconnect(421, "4.7.0 not you")


def get_inbound_tls_parameters(session: Session, parameters: TlsParameters) -> None:
    pathway = session.connection_context["pathway"]
    if pathway == "without":
        parameters.use_tls = "no"
    if pathway == "strict":
        parameters.tls_verify = "require"
    if pathway == "broken":
        raise RuntimeError("no parameters today")


def get_outbound_tls_parameters(message: Message, parameters: TlsParameters) -> None:
    if message.recipient == "strict@partner.test":
        parameters.use_tls = "required"
    if message.recipient == "broken@partner.test":
        raise RuntimeError("no decision")
    if message.recipient == "typo@partner.test":
        parameters.use_tls = "requierd"
"""


def _pin(pki: Path) -> str:
    return Certificate(ssl.PEM_cert_to_DER_cert((pki / "client-self-signed.pem").read_text())).sha256


@pytest.fixture(params=["lua", "python"])
def policy(request: pytest.FixtureRequest, pki: Path, tmp_path: Path) -> str:
    """The stanza of a policy that is the same in both languages."""
    (tmp_path / "q").mkdir(exist_ok=True)
    if request.param == "lua":
        (tmp_path / "q/tls.lua").write_text(LUA.replace("@PIN@", _pin(pki)))
        return 'scriptlet "scriptlet" { script "tls" { source = tls } }'
    (tmp_path / "q/tls.py").write_text(PYTHON.replace("@PIN@", _pin(pki)))
    return 'policy "tls" { module = "tls.py" }'


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("default", "without", "strict", "broken")}


def _config(pki: Path, policy: str, ports: dict[str, int], more: str = "") -> str:
    listens = "\n".join(f'Listen "127.0.0.1:{port}" {{ Pathway = {name} }}' for name, port in ports.items())
    pathways = "\n".join(f"Pathway {name} {{ }}" for name in ports)
    return f"""
    {policy}
    {pathways}
    Retry_Interval = 1 Max_Retry_Interval = 1 Host_Failure_Retry = 1
    ESMTP_Listener {{
      Relay_Hosts = ( 127.0.0.0/8 )
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      TLS_Client_CA = {pki}/ca.pem
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
      {listens}
    }}
    {more}"""


def test_inbound(server: Callable[..., Server], pki: Path, policy: str, ports: dict[str, int]) -> None:
    running = server(_config(pki, policy, ports)).start()

    def connect(certificate: str, pathway: str = "default") -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", ports[pathway], timeout=30)
        client.starttls(context=context(pki, "1.3", certificate))
        return client

    with connect("client") as client:
        assert client.noop()[0] == 250
    with connect("client-self-signed") as client:  # pinned by its fingerprint
        assert client.noop()[0] == 250
    with connect("client-expired") as client:
        assert client.noop()[0] == 250
    events = running.wait_events("handshake", 3)
    assert [event["tls"]["verified"] for event in events] == [True, True, False]
    assert [event["tls"]["cause"] for event in events] == ["", "", "expired"]

    client = connect("client-wrong-ca")
    assert client.noop() == (421, b"4.7.0 not you")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.noop()
    with smtplib.SMTP("127.0.0.1", ports["without"], timeout=30) as client:
        client.ehlo()
        assert client.docmd("STARTTLS") == (454, b"4.7.0 TLS not available")
        assert client.noop()[0] == 250
    client = smtplib.SMTP("127.0.0.1", ports["broken"], timeout=30)
    client.ehlo()
    assert client.docmd("STARTTLS") == (421, b"4.7.0 TLS cannot be set up, please try later")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.noop()
    with pytest.raises(OSError), connect("", "strict") as client:
        client.noop()
    assert running.wait_events("handshake", 5)[-1]["tls"]["cause"] == "no_client_certificate"
    panic = running.log("paniclog.ec")
    assert any("get_inbound_tls_parameters error in tls" in line and "no parameters today" in line for line in panic)


def test_outbound_for_one_message(server: Callable[..., Server], pki: Path, policy: str, ports: dict[str, int]) -> None:
    sink = SinkThread()  # without STARTTLS
    more = f'Domain partner.test {{ Gateway = "127.0.0.1:{sink.port}" TLS = ifavailable }}'
    running = server(_config(pki, policy, ports, more)).start()
    for name in ("plain", "strict", "broken", "typo"):
        with smtplib.SMTP("127.0.0.1", ports["default"], timeout=30) as client:
            client.sendmail("a@example.test", [f"{name}@partner.test"], MESSAGE)
    running.wait_events("attempt", 6)
    first: dict[str, dict[str, object]] = {}
    for event in running.events("attempt"):
        first.setdefault(event["recipient"].partition("@")[0], event)
    assert first["plain"]["outcome"] == "delivered"
    assert (first["strict"]["outcome"], first["strict"]["cause"]) == ("transient_failure", "no_starttls")
    assert first["strict"]["tls_option"] == "required"
    for name in ("broken", "typo"):
        assert (first[name]["outcome"], first[name]["cause"]) == ("transient_failure", "policy_failed")
        assert str(first[name]["reply"]).startswith("451 4.3.0")
    running.stop()
    sink.stop()
    assert [mail.recipients for mail in sink.sink.caught] == [("plain@partner.test",)]


# pure -----------------------------------------------------------------------------------------------------------

CALL = Call(Hook.OUTBOUND_VERIFY, Session("192.0.2.1:25", "", ""), Context())
TO = Remote("mx.partner.test", "192.0.2.1", "partner.test")


def _hooks(folder: Path, text: str) -> tuple[TlsHooks, list[str]]:
    (folder / "p.py").write_text(text)
    said: list[str] = []
    return TlsHooks(
        Policy([at_once(load_module("p", folder / "p.py", Environment(lambda: 0.0, said.append)))], said.append),
        str(folder),
    ), said


def _verdict(pki: Path, *causes: str, checked: bool = True) -> TlsVerdict:
    der = ssl.PEM_cert_to_DER_cert((pki / "good.pem").read_text())
    errors = tuple((cause, 0, "") for cause in causes)
    return TlsVerdict("TLSv1.3", "X", 256, 256, "", Certificate(der), checked, errors)


@pytest.mark.parametrize(
    ("said", "causes", "left"),
    [("None", ["expired"], "expired"), ("True", ["expired"], ""), ("1", ["expired"], ""), ("0", [], "rejected_by_policy"),
     ("False", [], "rejected_by_policy"), ("1 / 0", [], "rejected_by_policy"), ("'what'", [], "rejected_by_policy")],
)  # fmt: skip
def test_a_verify_hook_rules_the_chain(tmp_path: Path, pki: Path, said: str, causes: list[str], left: str) -> None:
    hooks, reports = _hooks(
        tmp_path, f"def outbound_smtp_tls_verify_callback(to, verified, certificate):\n    return {said}\n"
    )
    assert hooks.outbound_verdict(CALL, _verdict(pki, *causes), TO).cause == left
    assert bool(reports) == (said in ("1 / 0", "'what'"))


def test_a_verify_hook_is_not_asked_where_nothing_is_checked(tmp_path: Path, pki: Path) -> None:
    hooks, _ = _hooks(tmp_path, "def outbound_smtp_tls_verify_callback(to, verified, certificate):\n    return 0\n")
    assert hooks.outbound_verdict(CALL, _verdict(pki, checked=False), TO).cause == ""


def test_no_certificate_is_never_made_good(tmp_path: Path) -> None:
    hooks, _ = _hooks(tmp_path, "def inbound_smtp_tls_verify_callback(session, verified, certificate):\n    return 1\n")
    verdict = TlsVerdict("TLSv1.3", "X", 256, 256, "", None, True)
    assert hooks.inbound_verdict(CALL, verdict).cause == "no_certificate"


def test_a_hook_that_changes_nothing_leaves_a_message_with_the_others(tmp_path: Path) -> None:
    """Equal settings share a queue and its connections."""
    from quillon.policy.message import MessageView

    hooks, _ = _hooks(tmp_path, "def get_outbound_tls_parameters(message, p):\n    p.use_tls = p.use_tls\n")
    call = Call(Hook.OUTBOUND_PARAMETERS, CALL.session, Context(), "", MessageView("", "", "", "a@b", "c@d"))
    for before in (outbound(), outbound(tls="required", tls_ca="/ca.pem", tls_certificate="/c.pem")):
        assert hooks.outbound_parameters(call, before) == before


def test_parameters_are_checked_and_paths_made_whole(tmp_path: Path) -> None:
    hooks, _ = _hooks(
        tmp_path,
        "def get_outbound_tls_parameters(message, p):\n"
        "    p.use_tls, p.tls_verify, p.ca, p.certfile, p.cipherlist = 2, 'HOST', 'ca.pem', '/c.pem', 'X'\n",
    )
    from quillon.policy.message import MessageView

    call = Call(Hook.OUTBOUND_PARAMETERS, CALL.session, Context(), "", MessageView("", "", "", "a@b", "c@d"))
    found = hooks.outbound_parameters(call, outbound())
    assert (found.tls, found.tls_verify, found.tls_ca) == ("required", "host", str(tmp_path / "ca.pem"))
    assert (found.tls_certificate, found.tls_ciphers) == ("/c.pem", "X")
    hooks, said = _hooks(tmp_path, "def get_outbound_tls_parameters(message, p):\n    p.tls_verify = 'hots'\n")
    with pytest.raises(HookFailed, match="it is one of no, ca, host, optional"):
        hooks.outbound_parameters(call, outbound())
    assert len(said) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def validate_connect(session)\n    pass\n", r"p\.py:1: SyntaxError"),
        ("import nothing_of_the_kind\n", r"p\.py:1: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)\n", r"p\.py:2: sys.exit would end the server"),
        ("def validate_mailfrm(session): pass\n", r"validate_mailfrm is no callout; did you mean validate_mailfrom\?"),
        ("def msg_gen_data_spool(session): pass\n", "that this version does not have"),
        ("x = 1\n", "has no function named as a phase or hook"),
        ("async def validate_dealloc(session): pass\n", "is async"),
        ("def validate_connect(session): pass\nasync def deinit(): pass\n", "deinit is async"),
        ("def validate_connect(session): pass\ndef init(): 1 / 0\n", r"init: .*p\.py:2: ZeroDivisionError"),
    ],
)
def test_a_policy_file_that_does_not_load(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "p.py").write_text(text)
    with pytest.raises(PolicyError, match=error):
        at_once(load_module("p", tmp_path / "p.py", Environment(lambda: 0.0, print)))


def test_a_python_policy_decides_and_its_errors_have_a_line(tmp_path: Path, server: Callable[..., Server]) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text(
        """from quillon.policy.python import Message, Session, Verdict

def validate_mailfrom(session: Session) -> None:
    if session.message_context["mailfrom_domain"] == "bank.fi" and "tls" not in session.connection_context:
        session.reject(550, "5.7.1 mail of bank.fi comes over TLS")

def validate_rcptto(session: Session, message: Message) -> Verdict:
    if message.recipient == "wrong@partner.test":
        raise ValueError("what a recipient")
    return Verdict.DONE

def validate_data_spool(session: Session, message: Message) -> None:
    if message.header("Subject") != ["hello"]:
        session.reject(554, f"5.6.0 {message.size} octets of nothing")
"""
    )
    running = server(
        f"""policy "p" {{ module = "p.py" }}
        Suspend_Delivery = true
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.mail("a@bank.fi") == (550, b"5.7.1 mail of bank.fi comes over TLS")
        assert client.mail("a@other.fi")[0] == 250
        assert client.rcpt("wrong@partner.test")[0] == 451
        assert client.rcpt("right@partner.test")[0] == 250
        assert client.data("Subject: nothing\r\n\r\nhi\r\n")[0] == 554
        client.sendmail("a@other.fi", ["right@partner.test"], MESSAGE)
    assert any("p.py:9: ValueError: what a recipient" in line for line in running.log("paniclog.ec"))
