"""AUTH (RFC 4954): the mechanisms as machines, and against the clients of others in a running server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import smtplib
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillon.cli.main import main
from quillon.config.load import load
from quillon.listener import credentials
from quillon.smtp import sasl
from quillon.smtp.sasl import AuthOutcome, Challenge, Malformed, SaslServer, Secret, SourceError
from tests.support.clients import MESSAGE, context
from tests.support.peers import require
from tests.support.server import Server as Quillon
from tests.support.server import free_port, until
from tests.support.sinks import SinkThread

USERS = {"alice": Secret(password="secret"), "bäcker": Secret(password="grün"), "a,b=c": Secret(password="x")}


def _server(users: dict[str, Secret] | None = None) -> SaslServer:
    known = USERS if users is None else users

    def lookup(user: str) -> Secret | None:
        return known.get(user)

    return SaslServer("mx.test", "mx.test", lookup, lambda: "nonce", b"key")


def _plain(data: bytes | None) -> object:
    return sasl.exchange("PLAIN", _server()).step(data)


def test_plain() -> None:
    assert _plain(None) == Challenge(b"")
    assert _plain(b"\0alice\0secret") == AuthOutcome("alice", None, "secret")
    assert _plain(b"alice\0alice\0secret") == AuthOutcome("alice", None, "secret")
    assert _plain(b"bob\0alice\0secret") == AuthOutcome("alice", False)
    for wrong in (b"", b"alice", b"\0\0x", b"a\0b\0c\0d", b"\xff\0a\0b"):
        assert isinstance(_plain(wrong), Malformed), wrong


def test_login() -> None:
    machine = sasl.exchange("LOGIN", _server())
    assert machine.step(None) == Challenge(b"Username:")
    assert machine.step(b"alice") == Challenge(b"Password:")
    assert machine.step(b"secret") == AuthOutcome("alice", None, "secret")
    assert sasl.exchange("LOGIN", _server()).step(b"alice") == Challenge(b"Password:")


def test_cram_md5() -> None:
    machine = sasl.exchange("CRAM-MD5", _server())
    challenge = machine.step(None)
    assert challenge == Challenge(b"<nonce@mx.test>")
    digest = hmac.new(b"secret", challenge.data, hashlib.md5).hexdigest()
    assert machine.step(f"alice {digest}".encode()) == AuthOutcome("alice", True)
    assert machine.step(f"bob {digest}".encode()) == AuthOutcome("bob", False)
    assert isinstance(machine.step(b"alice zz"), Malformed)
    empty = hmac.new(b"", challenge.data, hashlib.md5).hexdigest()
    assert machine.step(f"nobody {empty}".encode()) == AuthOutcome("nobody", False)


def test_digest_md5_by_the_example_of_rfc_2831() -> None:
    """RFC 2831 4, with its service changed to smtp by computing the response anew."""
    users = {"chris": Secret(digests={"mx.test": sasl.digest_hash("chris", "mx.test", "secret").hex()})}
    machine = sasl.exchange("DIGEST-MD5", _server(users))
    assert b'nonce="nonce"' in machine.step(None).data  # type: ignore[union-attr]
    fields = {"nonce": "nonce", "cnonce": "OA6MHXh6VqTrRk", "nc": "00000001", "digest-uri": "smtp/mx.test"}
    start = sasl.digest_hash("chris", "mx.test", "secret")
    good = sasl._digest(start, fields, "AUTHENTICATE")
    line = 'charset=utf-8,username="chris",realm="mx.test",nonce="nonce",nc=00000001,cnonce="OA6MHXh6VqTrRk",digest-uri="smtp/mx.test",response={},qop=auth'
    step = machine.step(line.format(good).encode())
    assert step == Challenge(b"rspauth=" + sasl._digest(start, fields, "").encode())
    assert machine.step(b"") == AuthOutcome("chris", True)
    for changed in (
        line.replace('nonce="nonce"', 'nonce="other"'),
        line.replace("smtp/", "imap/"),
        line.replace("nc=00000001", "nc=00000002"),
    ):
        assert sasl.exchange("DIGEST-MD5", _server(users)).step(changed.format(good).encode()) == AuthOutcome(
            "chris", False
        )
    strange = line.format('"\u00fc"').encode()
    assert sasl.exchange("DIGEST-MD5", _server(users)).step(strange) == AuthOutcome("chris", False)
    assert isinstance(sasl.exchange("DIGEST-MD5", _server(users)).step(b"username=x"), Malformed)


def test_scram_by_the_example_of_rfc_7677() -> None:
    """RFC 7677 3."""
    secret = sasl.scram_secret("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    server = SaslServer(
        "mx.test",
        "mx.test",
        lambda user: Secret(scram=secret) if user == "user" else None,
        lambda: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        b"k",
    )
    machine = sasl.exchange("SCRAM-SHA-256", server)
    first = machine.step(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert first == Challenge(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    final = machine.step(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert final == Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert machine.step(b"") == AuthOutcome("user", True)


def test_scram_does_not_tell_who_exists() -> None:
    answers = [sasl.exchange("SCRAM-SHA-256", _server()).step(b"n,,n=nobody,r=x") for _ in range(2)]
    assert answers[0] == answers[1]
    assert b"i=4096" in answers[0].data  # type: ignore[union-attr]
    machine = sasl.exchange("SCRAM-SHA-256", _server())
    machine.step(b"n,,n=nobody,r=x")
    proof = base64.b64encode(b"\0" * 32)
    assert machine.step(b"c=biws,r=xnonce,p=" + proof) == AuthOutcome("nobody", False)
    for wrong in (b"p=tls-unique,,n=a,r=b", b"n,,r=b", b"\xff", b"n,a=other,n=alice,r=x"):
        step = sasl.exchange("SCRAM-SHA-256", _server()).step(wrong)
        assert isinstance(step, Malformed) or step == AuthOutcome("alice", False), wrong


@given(st.sampled_from(sasl.MECHANISMS), st.lists(st.binary(max_size=80), max_size=4))
def test_no_response_brings_a_mechanism_down(mechanism: str, responses: list[bytes]) -> None:
    machine = sasl.exchange(mechanism, _server())
    step: object = machine.step(None)
    for response in responses:
        if not isinstance(step, Challenge):
            break
        step = machine.step(response)
    assert not (isinstance(step, AuthOutcome) and step.ok)


def test_files_of_users(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    users = credentials.parse("file", "# note\n\nalice:se:cret\n")
    assert users == {"alice": Secret(password="se:cret")}
    digest = sasl.digest_hash("alice", "r: x", "p").hex()
    assert credentials.parse("digest", f"alice:r: x:{digest.upper()}")["alice"].digests == {"r: x": digest}
    for scheme, text in (("file", "alice"), ("digest", "alice:realm:zz"), ("scram", "alice:SCRAM-SHA-256$1:x$y:z")):
        with pytest.raises(ValueError, match="line 1") as caught:
            credentials.parse(scheme, text)
        assert "alice" not in str(caught.value)
    monkeypatch.setattr("getpass.getpass", lambda _: "pa:ss")
    assert main(["password", "alice"]) == 0
    line = capsys.readouterr().out
    secret = credentials.parse("scram", line)["alice"]
    assert sasl.password_fits("alice", "pa:ss", secret)
    assert not sasl.password_fits("alice", "other", secret)
    assert not sasl.password_fits("alice", "x", None)
    assert sasl.password_fits("alice", "p", Secret(digests={"r: x": digest}))
    now = [0.0]
    file = tmp_path / "users"
    source = credentials.UserFile("file", str(file), lambda: now[0])
    with pytest.raises(SourceError, match="cannot read"):
        source("alice")
    file.write_text("alice:one\n")
    assert source("alice") == Secret(password="one")
    file.write_text("alice:another\n")
    now[0] = 5.0
    assert source("alice") == Secret(password="another")


@pytest.mark.parametrize(
    ("listener", "words"),
    [
        ('SMTP_Extensions = ( "AUTH LOGIN" )', "offers AUTH LOGIN, which needs authloginparameters"),
        ('SMTP_Extensions = ( "AUTH MAGIC" )', "AUTH takes mechanisms"),
        ('SMTP_Extensions = ( "AUTH PLAIN" ) AuthPlainParameters = [ uri = "users" ]', "is no uri of credentials"),
        (
            'SMTP_Extensions = ( "AUTH CRAM-MD5" ) AuthCramMD5Parameters = [ uri = "digest:///u" ]',
            "cannot use digest://",
        ),
        ('Auth_In_Clear = ( "CRAM-MD5" )', "only PLAIN and LOGIN"),
        ('SMTP_Extensions = ( "XCLIENT" )', "XCLIENT: offered to nobody without Trusted_Clients"),
    ],
)
def test_configurations_that_do_not_hold(tmp_path: Path, listener: str, words: str) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text(f'ESMTP_Listener {{ {listener} Listen "127.0.0.1:2525" {{ }} }}')
    assert [fault for fault in load(file).faults if words in str(fault)]


def _config(port: int, pki: Path, folder: Path, sink: int = 1, more: str = "") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "clear").write_text("alice:secret\nbob:p@ss word\n")
    (folder / "digest").write_text(
        f"alice:mx.quillon.test:{sasl.digest_hash('alice', 'mx.quillon.test', 'secret').hex()}\n"
    )
    record = sasl.scram_record(sasl.scram_secret("secret", b"0123456789abcdef", 4096))
    (folder / "scram").write_text(f"alice:{record}\n")
    return f"""
    Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink}" ) }}
    ESMTP_Listener {{
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      AuthPlainParameters = [ uri = "file://{folder}/clear" log_authentication = "true" ]
      AuthLoginParameters = [ uri = "scram://{folder}/scram" log_authentication = "true" ]
      AuthCramMD5Parameters = [ uri = "file://{folder}/clear" log_authentication = "true" ]
      AuthDigestMD5Parameters = [ uri = "digest://{folder}/digest" log_authentication = "true" ]
      AuthScramSha256Parameters = [ uri = "scram://{folder}/scram" log_authentication = "true" ]
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "AUTH PLAIN LOGIN" "AUTH CRAM-MD5" "AUTH DIGEST-MD5" "AUTH SCRAM-SHA-256" )
      Auth_Failure_Delay = 0
      {more}
      Listen "127.0.0.1:{port}" {{ }}
    }}"""


LOG = 'ec_logger "acct" { mainlog = log/m2 rejectlog = log/r2 paniclog = log/p2 acctlog = log/acctlog.ec }\n'


def test_clients_of_others(server: Callable[..., Quillon], pki: Path, tmp_path: Path) -> None:
    port = free_port()
    with SinkThread() as sink:
        running = server(LOG + _config(port, pki, tmp_path / "users", sink.port)).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo("client.test")
            assert client.esmtp_features["auth"].split() == ["SCRAM-SHA-256", "DIGEST-MD5", "CRAM-MD5"] * 2
            client.login("alice", "secret")  # CRAM-MD5
            assert client.docmd("AUTH", "PLAIN")[0] == 503
            client.sendmail("alice@sender.test", ["b@partner.test"], MESSAGE)
        for mechanism in ("PLAIN", "LOGIN"):
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.ehlo("client.test")
                assert client.docmd("AUTH", f"{mechanism} AGFsaWNlAHNlY3JldA==") == (
                    538, b"5.7.11 encryption required for requested authentication mechanism",
                )  # fmt: skip
                client.starttls(context=context(pki, "1.3"))
                client.ehlo("client.test")
                client.user, client.password = "alice", "secret"
                client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))
                client.sendmail("alice@sender.test", ["b@partner.test"], MESSAGE)
        got = until(lambda: list(sink.messages) if len(sink.messages) == 3 else None, "delivery")
    headers = [message.data.decode() for message in got]
    assert sum("with ESMTPA" in text for text in headers) == 1
    assert sum("with ESMTPSA" in text for text in headers) == 2
    for mechanism in ("CRAM-MD5", "PLAIN", "LOGIN"):
        wanted = f"Authentication-Results: mx.quillon.test;\r\n\tauth=pass ({mechanism}) smtp.auth=alice\r\n"
        assert sum(wanted in text for text in headers) == 1
    lines = [line.split("@") for line in running.log("acctlog.ec")]
    assert [(line[1], line[4], line[5]) for line in lines] == [("N", "alice", "1")] * 3
    assert lines[0][2] == f"127.0.0.1:{port}"


@pytest.mark.peer
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "DIGEST-MD5", "CRAM-MD5", "PLAIN", "LOGIN"])
def test_gsasl(server: Callable[..., Quillon], pki: Path, tmp_path: Path, mechanism: str) -> None:
    require("gsasl")
    port = free_port()
    server(_config(port, pki, tmp_path / "users", more='Auth_In_Clear = ( "PLAIN" "LOGIN" )')).start()
    for password, good in (("secret", True), ("wrong", False)):
        command = [
            "gsasl",
            "--smtp",
            f"--connect=127.0.0.1:{port}",
            "--no-starttls",
            "-m",
            mechanism,
            "-a",
            "alice",
            "-p",
            password,
        ]
        done = subprocess.run(
            [*command, "--hostname=mx.quillon.test", "--service=smtp", "--realm=mx.quillon.test", "--quality-of-protection=qop-auth"],
            input="QUIT\n", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert ("235 2.7.0" in said) is good, said
        assert ("535 5.7.8 Sorry" in said) is not good, said


def test_wrong_sequences_and_what_is_no_base64(server: Callable[..., Quillon], pki: Path, tmp_path: Path) -> None:
    port = free_port()
    running = server(LOG + _config(port, pki, tmp_path / "users", more='Auth_In_Clear = ( "PLAIN" "LOGIN" )')).start()

    def dialog(*lines: tuple[str, int]) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            for line, code in lines:
                client.putcmd(line)
                assert client.getreply()[0] == code, line

    ehlo = ("EHLO c", 250)
    dialog(
        ("AUTH PLAIN", 503),
        ehlo,
        ("AUTH", 504),
        ("AUTH GSSAPI", 504),
        ("AUTH PLAIN !!", 501),
        ("AUTH PLAIN", 334),
        ("*", 501),
        ("NOOP", 250),
    )
    dialog(ehlo, ("AUTH LOGIN", 334), ("YWxpY2U=", 334), ("not base64", 501), ("NOOP", 250))
    dialog(
        ehlo,
        ("AUTH PLAIN =", 535),
        ("AUTH PLAIN AGFsaWNlAHdyb25n", 535),
        ("AUTH PLAIN AGFsaWNlAHNlY3JldA==", 235),
        ("AUTH PLAIN", 503),
    )
    dialog(ehlo, ("MAIL FROM:<a@x.test> AUTH=<>", 250), ("AUTH PLAIN", 503), ("RCPT TO:<b@partner.test>", 550))
    dialog(
        ehlo,
        ("AUTH PLAIN AGFsaWNlAHNlY3JldA==", 235),
        ("MAIL FROM:<a@x.test> AUTH=a+2Bb@x", 250),
        ("RCPT TO:<b@partner.test>", 250),
    )
    dialog(ehlo, ("AUTH PLAIN", 334), ("x" * 13000, 500), ("NOOP", 250))
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:  # what was said in clear is forgotten
        client.ehlo()
        client.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==")
        client.starttls(context=context(pki, "1.3"))
        client.ehlo()
        client.mail("a@x.test")
        assert client.rcpt("b@partner.test")[0] == 550
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"EHLO c\r\nAUTH LOGIN\r\n")
        time.sleep(0.2)
    until(lambda: [line for line in running.log("acctlog.ec") if "@T@" in line], "a line for the client that went away")


def test_guessing_is_slow_and_ends(server: Callable[..., Quillon], pki: Path, tmp_path: Path) -> None:
    port = free_port()
    more = 'Auth_In_Clear = ( "PLAIN" ) Auth_Failure_Delay = 1 Auth_Failure_Limit = 2'
    server(_config(port, pki, tmp_path / "users", more=more).replace("Auth_Failure_Delay = 0", "")).start()
    wrong = "PLAIN AGFsaWNlAHdyb25n"
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        begun = time.monotonic()
        assert client.docmd("AUTH", wrong)[0] == 535
        assert time.monotonic() - begun > 0.9
        assert client.docmd("AUTH", wrong)[0] == 421
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==") == (
            421, b"4.7.0 too many failed authentications, try again later",
        )  # fmt: skip


def test_guesses_at_the_same_time_count_too(server: Callable[..., Quillon], pki: Path, tmp_path: Path) -> None:
    port = free_port()
    server(_config(port, pki, tmp_path / "users", more='Auth_In_Clear = ( "LOGIN" ) Auth_Failure_Limit = 5')).start()
    clients = [smtplib.SMTP("127.0.0.1", port, timeout=30) for _ in range(12)]
    for client in clients:
        client.ehlo()
        assert client.docmd("AUTH", "LOGIN YWxpY2U=")[0] == 334
    for client in clients[:-1]:
        client.putcmd("d3Jvbmc=")
    codes = [client.getreply()[0] for client in clients[:-1]]
    assert set(codes) <= {535, 421}
    assert 421 in codes
    assert clients[-1].docmd("c2VjcmV0")[0] == 421  # the right one, but too late
    for client in clients:
        client.close()


def test_guesses_count_in_all_workers_and_over_a_reload(
    server: Callable[..., Quillon], pki: Path, tmp_path: Path
) -> None:
    port = free_port()
    more = 'Auth_In_Clear = ( "PLAIN" ) Auth_Failure_Limit = 6'
    running = server(_config(port, pki, tmp_path / "users", more=more), workers=3).start()

    def answer(password: bytes) -> int:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            return client.docmd("AUTH", "PLAIN " + base64.b64encode(b"\0alice\0" + password).decode())[0]

    codes = []
    for _ in range(8):
        codes.append(answer(b"wrong"))
        time.sleep(0.1)  # for the others to hear of it
    assert codes == [535] * 5 + [421] * 3
    assert [answer(b"secret") for _ in range(12)] == [421] * 12
    more += ' Banner_Hostname = "new.test"'
    running.configure(_config(port, pki, tmp_path / "users", more=more), workers=3)
    running.reload()

    def banner() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            return sock.recv(1000)

    until(lambda: all(b"new.test" in banner() for _ in range(9)), "reload of all workers")
    assert [answer(b"secret") for _ in range(6)] == [421] * 6


def test_authentication_that_is_demanded_and_sources_that_fail(
    server: Callable[..., Quillon], pki: Path, tmp_path: Path
) -> None:
    port = free_port()
    more = 'Auth_In_Clear = ( "PLAIN" ) Enable_Authentication = true'
    running = server(_config(port, pki, tmp_path / "users", more=more)).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        assert client.mail("a@x.test") == (530, b"5.7.0 authentication required")
        (tmp_path / "users/clear").unlink()
        time.sleep(1.1)
        assert client.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==") == (550, b"5.7.8 Unexpected auth error")
    assert [line for line in running.log("paniclog.ec") if "auth: PLAIN: cannot read" in line]
    running.reload()
    until(
        lambda: [line for line in running.log("paniclog.ec") if "reload refused" in line], "refusal of a missing file"
    )


LUA = """
local m, auth = {}, {}
function auth:authenticate(filename, params, user, password)
  msys.sleep(0.01)
  if user == "boom" then error("no backend") end
  if filename == "dir" and params.realm == "r" and user == "root" and password == "letmein" then return msys.core.EC_AUTH_OK end
  return msys.core.EC_AUTH_FAIL
end
function m:init()
  refusal = msys.readfile("refusal")
  msys.registerAuth("myscheme", auth)
  return refusal ~= nil
end
function m:core_validate_auth_hook(vctx, info, status)
  vctx:set(1, "seen", info.user .. info.name .. status)
  if vctx:get(1, "tls") ~= "on" then vctx:set_code(530, "5.7.0 Must issue a STARTTLS command first") end
end
function m:pre_esmtp_auth(ac, auth) if auth.user == "preboom" then error("never") end end
function m:ac_auth_perform_auth(username, password, ac, response)
  if password == "testx" then response:write(refusal, #refusal) end
  if password == "welcome" then response:write("235 2.7.0 welcome") end
  if password == "broken" then error("no database") end
  local row = msys.db.fetch_row("users", "SELECT password FROM users WHERE name = ?", {username})
  return row ~= nil and password == row.password and msys.core.EC_AUTH_OK or msys.core.EC_AUTH_FAIL
end
msys.registerModule("m", m)
"""


def test_lua_has_schemes_and_the_last_word(server: Callable[..., Quillon], pki: Path, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "q").mkdir()
    (tmp_path / "q/s.lua").write_text(LUA)
    (tmp_path / "q/refusal").write_text("531 Get out of town")
    with contextlib.closing(sqlite3.connect(tmp_path / "q/users.db")) as users:
        users.execute("CREATE TABLE users (name TEXT, password TEXT)")
        users.execute("INSERT INTO users VALUES ('Test User', 'test2006')")
        users.commit()
    config = f"""
    scriptlet "scriptlet" {{ script "s" {{ source = s }} }}
    datasource "users" {{ uri = ( "sqlite:users.db" ) }}
    ac_auth {{ }}
    ESMTP_Listener {{
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      AuthPlainParameters = [ uri = "myscheme://dir" realm = "r" ]
      AuthLoginParameters = [ uri = "ac_auth://" ]
      Auth_In_Clear = ( "PLAIN" "LOGIN" )
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "AUTH PLAIN" "AUTH LOGIN" "XDUMPCONTEXT" )
      Trusted_Clients = ( 127.0.0.1 ) Auth_Failure_Delay = 0
      Listen "127.0.0.1:{port}" {{ }}
    }}"""
    running = server(config).start()

    def attempt(mechanism: str, user: str, password: str, *, tls: bool = True) -> tuple[int, bytes]:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo()
            if tls:
                client.starttls(context=context(pki, "1.3"))
                client.ehlo()
            if mechanism == "PLAIN":
                text = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
                reply = client.docmd("AUTH", f"PLAIN {text}")
            else:
                client.docmd("AUTH", "LOGIN " + base64.b64encode(user.encode()).decode())
                reply = client.docmd(base64.b64encode(password.encode()).decode())
            said = client.docmd("XDUMPCONTEXT")[1]
            assert f"[connection] seen {user}{mechanism}".encode() in said
            assert (b"can_relay true" in said) is (reply[0] == 235)
            return reply

    assert attempt("PLAIN", "root", "letmein")[0] == 235
    assert attempt("PLAIN", "root", "wrong")[0] == 535
    assert attempt("PLAIN", "boom", "x") == (550, b"5.7.8 Unexpected auth error")
    assert attempt("PLAIN", "root", "letmein", tls=False) == (530, b"5.7.0 Must issue a STARTTLS command first")
    assert attempt("LOGIN", "Test User", "test2006")[0] == 235
    assert attempt("LOGIN", "Test User", "testx") == (531, b"Get out of town")
    assert attempt("LOGIN", "Nobody", "test2006")[0] == 535
    # a refusal is none with the words of a success, and what fails has not agreed
    assert attempt("LOGIN", "Test User", "welcome") == (535, b"5.7.8 Sorry")
    assert attempt("LOGIN", "Test User", "broken") == (451, b"4.3.0 policy error, please try later")
    assert attempt("LOGIN", "preboom", "test2006") == (451, b"4.3.0 policy error, please try later")
    (tmp_path / "q/refusal").write_text("531 Not today")
    running.reload()  # waited for by what it says: too many failed attempts end a session
    until(lambda: "configuration reloaded" in running.said(), "the reload")
    assert attempt("LOGIN", "Test User", "testx") == (531, b"Not today")
    (tmp_path / "q/refusal").unlink()
    running.reload()
    until(lambda: any("init of m did not return true" in line for line in running.log("paniclog.ec")), "a refusal")
    assert attempt("LOGIN", "Test User", "testx") == (531, b"Not today")
    assert [line for line in running.log("paniclog.ec") if "no backend" in line]


def test_trusted_clients(server: Callable[..., Quillon], tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    config = f"""
    ESMTP_Listener {{
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "XCLIENT" "XREMOTEIP" "XSETCONTEXT" "XDUMPCONTEXT" )
      Context = [ site = "one" ]
      Listen "127.0.0.1:{port}" {{ Trusted_Clients = ( 127.0.0.0/8 ) Peer "10.0.0.0/8" {{ Relay_Hosts = ( 10.1.0.0/16 ) }} }}
      Listen "127.0.0.1:{other}" {{ Trusted_Clients = ( 192.0.2.0/24 ) }}
    }}"""
    running = server(config).start()
    with smtplib.SMTP("127.0.0.1", other, timeout=30) as client:
        client.ehlo()
        assert not {"xclient", "xdumpcontext"} & client.esmtp_features.keys()
        for command in ("XCLIENT ADDR=10.1.2.3", "XREMOTEIP 10.1.2.3", "XSETCONTEXT a=b", "XDUMPCONTEXT"):
            assert client.docmd(command)[0] == 500
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("gate.test")
        assert {"xclient", "xremoteip", "xsetcontext", "xdumpcontext"} <= client.esmtp_features.keys()
        assert client.docmd("XSETCONTEXT a=b+20c site=two")[0] == 250
        for wrong in (
            "XSETCONTEXT",
            "XSETCONTEXT a",
            "XSETCONTEXT tls=on",
            "XSETCONTEXT tls_client_verified=yes",
            "XSETCONTEXT +74ls=on",
            "XSETCONTEXT a=b+0D+0Ac",
            "XCLIENT PORT=+C2+B2",
            "XREMOTEIP x",
            "XCLIENT X=Y",
            "XCLIENT ADDR=nobody",
            "XCLIENT",
        ):
            assert client.docmd(wrong)[0] == 501, wrong
        said = client.docmd("XDUMPCONTEXT")[1].decode()
        assert "[connection] a b c" in said
        assert "[connection] site two" in said
        assert said.endswith("XDUMPCONTEXT complete")
        assert client.docmd("XREMOTEIP 10.1.2.3")[0] == 250
        client.mail("a@x.test")
        assert client.rcpt("b@y.test")[0] == 250  # the Peer's Relay_Hosts hold now
        assert client.docmd("XCLIENT ADDR=IPV6:2001:db8::1 PORT=77 HELO=real.test LOGIN=carol")[0] == 220
        client.ehlo("real.test")
        said = client.docmd("XDUMPCONTEXT")[1].decode()
        assert "[connection] auth_user carol" in said
        client.mail("a@x.test")
        assert client.rcpt("b@y.test")[0] == 250  # carol has authenticated
        assert client.docmd("XCLIENT ADDR=192.0.2.9 LOGIN=[UNAVAILABLE]")[0] == 220
        client.ehlo("real.test")
        client.mail("a@x.test")
        assert client.rcpt("b@y.test")[0] == 550
    assert [line for line in running.log("rejectlog.ec") if 'R="192.0.2.9:' in line]
