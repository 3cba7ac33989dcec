"""Policies tried out: a dialog played without a network, real sessions recorded and played again, console commands."""

from __future__ import annotations

import json
import smtplib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from tests.support.clients import MESSAGE, context
from tests.support.server import Server, free_port, until

BANK = """require("msys.core")
local m = {}
function m:validate_mailfrom(str, ac, vctx)
  if vctx:get(msys.core.VCTX_MESS, "mailfrom_domain") == "bank.fi" then
    vctx:set(msys.core.VCTX_MESS, "bank", "yes")
    if vctx:get(msys.core.VCTX_CONN, "tls_client_verified") ~= "yes" then
      vctx:set_code(550, "5.7.1 a verified client certificate is needed")
    end
  end
  return msys.core.VALIDATE_DONE
end
function m:validate_data(msg, ac, vctx)
  local records = msys.dnsLookup("policy.bank.fi", "TXT")
  if records and records[1] == "closed" then vctx:set_code(451, "4.7.1 closed") end
  if msg:header("X-Bad")[1] then vctx:set_code(554, "5.7.1 bad header") end
  return msys.core.VALIDATE_CONT
end
msys.registerModule("bank", m)
"""
DIALOG = """# a partner
EHLO mx.bank.fi
STARTTLS
EHLO mx.bank.fi
MAIL FROM:<a@bank.fi>
RCPT TO:<b@local.test>
DATA
Subject: hello

.. a dot
.
QUIT
"""


def _config(folder: Path, port: int = 2525, more: str = "") -> Path:
    file = folder / "ecelerity.conf"
    (folder / "bank.lua").write_text(BANK)
    file.write_text(
        f"""Hostname = mx.test
        scriptlet "scriptlet" {{ script "bank" {{ source = bank }} }}
        Relay_Domains = ( "local.test" )
        ESMTP_Listener {{
          SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
          {more}
          Listen "127.0.0.1:{port}" {{ }}
        }}"""
    )
    return file


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 1, ["C: (no STARTTLS: --tls-verified says", "S: 550 5.7.1 a verified client certificate is needed"]),
        (
            ["--tls-verified", "yes"],
            0,
            ["   bank.validate_mailfrom: DONE", "      message bank = yes", "S: 250 2.0.0 OK"],
        ),
        (
            ["--tls-verified", "no"],
            1,
            ["   bank.validate_mailfrom: DONE, 550 5.7.1 a verified client certificate is needed"],
        ),
        (["--tls-verified", "none"], 1, ["S: 550 5.7.1 a verified"]),
        (
            ["--tls-verified", "yes", "--dns", "dns.json"],
            1,
            ["   bank.validate_data: CONT, 451 4.7.1 closed", "bank.lua:14]"],
        ),
    ],
)
def test_a_dialog_without_a_network(
    tmp_path: Path,
    pki: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    certificate = f"TLS_Certificate = {pki}/server.pem TLS_Key = {pki}/server.key" if options else ""
    _config(tmp_path, more=certificate + (f" TLS_Client_CA = {pki}/ca.pem" if options else ""))
    (tmp_path / "d.smtp").write_text(DIALOG)
    (tmp_path / "dns.json").write_text('{"policy.bank.fi TXT": ["closed"]}')
    dns = [] if "--dns" in options else ["--dns", "none.json"]
    (tmp_path / "none.json").write_text("{}")
    assert main(["policy", "run", "--script", "d.smtp", "--peer", "10.1.2.3", *options, *dns]) == status
    said = capsys.readouterr().out
    for word in words:
        assert word in said, said


def test_a_dialog_for_programs_and_what_cannot_be_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _config(tmp_path)
    (tmp_path / "d.smtp").write_text("EHLO c\nMAIL FROM:<a@bank.fi>\n")
    assert main(["policy", "run", "--script", "d.smtp", "--json"]) == 1
    steps = json.loads(capsys.readouterr().out)
    assert steps[-1]["callouts"][0]["place"].endswith("bank.lua:7")
    assert steps[-1]["callouts"][0]["changes"] == [["message", "bank", "yes"]]
    for arguments, words in (
        (["--script", "none.smtp"], "none.smtp"),
        (["--script", "d.smtp", "--peer", "nobody"], "nobody"),
        (["--script", "d.smtp", "--listen", "x"], "there is no Listen 'x'; there are: 127.0.0.1:2525"),
        (["--script", "d.smtp", "--certificate", "none.pem"], "none.pem"),
        (["--script", "d.smtp", "--tls-verified", "no", "--tls-cause", "bogus"], "--tls-cause: 'bogus' is none of "),
        (
            ["--script", "d.smtp", "--tls-verified", "no", "--tls-version", "TLSv9"],
            "--tls-version: 'TLSv9' is none of ",
        ),
        (["--script", "d.smtp", "--dns", "d.smtp"], "--dns d.smtp: "),
    ):
        assert main(["policy", "run", *arguments]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "bank.lua").write_text("nonsense")
    assert main(["policy", "run", "--script", "d.smtp"]) == 2
    assert "bank.lua:1" in capsys.readouterr().err


def test_what_a_certificate_is_taken_for_and_a_message_that_is_not_wanted(
    tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tls = f"TLS_Certificate = {pki}/server.pem TLS_Key = {pki}/server.key"
    _config(tmp_path, more=tls)
    (tmp_path / "d.smtp").write_text(DIALOG)
    arguments = ["policy", "run", "--script", "d.smtp", "--certificate", str(pki / "client.pem")]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "has no TLS_Client_CA: in a real session no certificate would be asked for" in said.err
    assert "S: 550 5.7.1 a verified client certificate is needed" in said.out
    assert "S: 503 5.5.1" in said.out  # DATA
    assert "S: 500" not in said.out  # nothing of the message
    assert main([*arguments, "--tls-verified", "yes"]) == 0
    _config(tmp_path, more=f"{tls} TLS_Client_CA = {pki}/ca.pem")
    capsys.readouterr()
    assert main([*arguments, "--tls-verified", "yes"]) == 0
    assert "TLS_Client_CA" not in capsys.readouterr().err


CONTROL = """
local function greet(cc)
  if cc.argc < 2 then print("whom?") return end
  msys.sleep(0.01)
  print("hello", cc.argv[1])
end
msys.registerControl("greet", greet)
msys.registerControl("break", function() error("broken") end)
msys.registerControl("delay_domain", function(cc)
  local dr = msys.core.dns_get_domain(cc.argv[1])
  if dr ~= nil then msys.core.mail_queue_delay_domain(dr, "451 4.4.1 [internal] manually delayed domain") print(dr, "delayed") end
end)
"""


def test_recorded_sessions_are_played_again(
    server: Callable[..., Server], pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    folder = tmp_path / "q"
    folder.mkdir()
    (folder / "bank.lua").write_text(BANK)
    (folder / "control.lua").write_text(CONTROL)
    (folder / "users").write_text("alice:secret\n")
    config = f"""
    Control_Listener {{ Listen "{folder}/console" {{ }} }}
    DNS_Servers = ( "127.0.0.1:1" )
    scriptlet "scriptlet" {{ script "bank" {{ source = bank }} script "control" {{ source = control }} }}
    Domain "*test" {{ Suspend_Delivery = true }}
    Relay_Domains = ( "local.test" )
    ESMTP_Listener {{
      TLS_Certificate = {pki}/server.pem
      TLS_Key = {pki}/server.key
      TLS_Client_CA = {pki}/ca.pem
      SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "AUTH PLAIN" )
      AuthPlainParameters = [ uri = "file://{folder}/users" ] Auth_Failure_Delay = 0
      Listen "127.0.0.1:{port}" {{ }}
    }}"""
    running = server(config + "\nRecord_Folder = recorded").start()
    record = folder / "recorded/sessions.jsonl"

    def console(*words: str) -> tuple[int, str]:
        status = main(["console", "-c", str(running.file), *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    assert console("greet", "Environment") == (0, "hello Environment\n")
    assert console("greet") == (0, "whom?\n")
    assert "broken" in console("break")[1]
    assert console("delay_domain", "local.test") == (0, "local.test delayed\n")
    assert "unknown command" in console("nothing")[1]
    for elsewhere in ("../x", str(folder / "spool/worker-0/spool.db"), "/tmp/x", str(folder / "recorded/../y")):
        assert console("record", "start", elsewhere)[0] == 1
    assert console("record", "start", str(record)) == (0, "")
    assert "already" in console("record", "start", str(record))[1]

    def session(certificate: str, sender: str, password: str = "secret") -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo("client.test")
            client.starttls(context=context(pki, "1.3", certificate))
            client.ehlo("client.test")
            client.docmd("AUTH", "PLAIN " + {"secret": "AGFsaWNlAHNlY3JldA==", "wrong": "AGFsaWNlAHdyb25n"}[password])
            code, _ = client.mail(sender)
            if code == 250:
                client.rcpt("b@local.test")
                client.data(MESSAGE)

    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("client.test")  # in clear
        assert client.mail("c@other.test")[0] == 250
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"EHLO c\r\nSTARTTLS\r\n")  # without a handshake
        until(lambda: b"220 2.0.0" in sock.recv(4096), "go-ahead")
    session("client", "a@bank.fi")
    session("client-expired", "a@bank.fi")
    session("client", "c@other.test", "wrong")
    assert console("record", "stop")[1].endswith("5 sessions\n")
    text = record.read_text()
    assert record.stat().st_mode & 0o777 == 0o600
    assert "AGFsaWNl" not in text
    assert "\\r\\nhi" not in text  # no bodies unless asked
    rows = [json.loads(line) for line in text.splitlines()]
    assert sum("dns" in row for row in rows) == 2
    assert sum("steps" in row for row in rows) == 5

    def replay() -> tuple[int, str]:
        status = main(["replay", "-c", str(running.file), str(record)])
        return status, capsys.readouterr().out

    assert replay() == (0, "5 sessions, 0 end otherwise\n")
    (folder / "bank.lua").write_text(BANK.replace('~= "yes"', '== "yes"'))
    status, said = replay()
    assert status == 1
    assert "MAIL FROM:<a@bank.fi>" in said.replace("mail FROM", "MAIL FROM")
    assert "   was: 250 2.1.0 Sender Ok\n   now: 550 5.7.1 a verified client certificate is needed\n" in said
    assert said.endswith("5 sessions, 2 end otherwise\n")
    (folder / "bank.lua").write_text(
        BANK.replace("if records and", "if not records then vctx:set_code(450, '4.7.1 no record') end if records and")
    )
    status, said = replay()
    assert (status, said.count("now: 450 4.7.1 no record")) == (1, 2)
    (tmp_path / "broken").write_text("{}\n")
    assert main(["replay", "-c", str(running.file), str(tmp_path / "broken")]) == 2
    until(lambda: running.stop() == 0, "stop")
