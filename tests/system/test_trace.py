"""Traces of sessions: what an operator sees of them while they go on."""

from __future__ import annotations

import base64
import json
import os
import re
import smtplib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quillon.cli.main import main
from quillon.lab.sink import inbound_tls
from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread

PASSWORD = "open sesame"
USER = f'Outbound_SMTP_Auth_Type = {{}} Outbound_SMTP_Auth_User = "quillon" Outbound_SMTP_Auth_Pass = "{PASSWORD}"'


class Asked:
    """A console of a server, in this process."""

    def __init__(self, server: Server, capsys: Any) -> None:
        self._server = server
        self._capsys = capsys

    def __call__(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        assert main(["console", "-c", str(self._server.file), *words]) == status, self._capsys.readouterr()
        said = self._capsys.readouterr()
        return str(said.err if status else said.out)

    def add(self, *words: str) -> str:
        """The number of a new trace."""
        return str(json.loads(self("trace", "smtp", "add", *words, "--json"))["result"]["number"])

    def lines(self, number: str) -> list[str]:
        """What was said in it, without times and peers."""
        found = json.loads(self("trace", "smtp", "show", number, "--json"))
        return [row["text"] for row in found["result"]["lines"]]


def control(folder: Path, name: str = "c") -> str:
    return f'Record_Folder = "{folder}/traces" Control_Listener {{ Listen "{folder}/{name}" {{ }} }}\n'


def relay(port: int, more: str) -> str:
    return f'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}\n{more}'


def send(port: int, *recipients: str, sender: str = "a@sender.test") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail(sender, recipients, MESSAGE)


@pytest.mark.parametrize(("kind", "engine"), [("PLAIN", "openssl"), ("LOGIN", "gnutls")])
def test_both_sides_of_a_session(
    server: Callable[..., Server], pki: Path, tmp_path: Path, capsys: Any, kind: str, engine: str
) -> None:
    port, to = free_port(), free_port()
    (tmp_path / "users").write_text(f"quillon:{PASSWORD}\n")
    with SinkThread() as sink:
        receiver = server(
            control(tmp_path, "receiver.sock")
            + f"""TLS_Engine = {engine} Domain "partner.test" {{ Routes = ( "127.0.0.1:{sink.port}" ) }}
            ESMTP_Listener {{
              TLS_Certificate = {pki}/server.pem TLS_Key = {pki}/server.key Enable_Authentication = true
              Auth{kind.title()}Parameters = [ uri = "file://{tmp_path}/users" ]
              SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" "AUTH {kind}" )
              Listen "127.0.0.1:{to}" {{ }} }}""",
            name="r",
        ).start()
        domain = f'Routes = ( "127.0.0.1:{to}" ) TLS = required {USER.format(kind)}'
        sending = server(
            f"TLS_Engine = {engine}\n"
            + control(tmp_path)
            + relay(port, f'Domain "partner.test" {{ {domain} }}\noutbound_smtp_auth {{ }}')
        ).start()
        here, there = Asked(sending, capsys), Asked(receiver, capsys)
        out = here.add("--out", "--domain", "partner.*", "--file", "out.txt")
        into = there.add("--in", "--address", "b@partner.test")
        send(port, "b@partner.test")
        until(lambda: sink.messages, "delivery")
        until(lambda: any("250 2.0.0" in line for line in here.lines(out)[-3:]), "the last reply")
        both = here.lines(out), there.lines(into)

    for lines, command, reply in zip(both, "><", "<>", strict=True):
        text = "\n".join(lines)
        assert f"{command} STARTTLS" in lines
        assert f"{command} MAIL FROM:<a@sender.test>" in text
        assert f"{command} RCPT TO:<b@partner.test>" in lines
        assert re.search(f"^{reply} 220 mx.quillon.test ESMTP", text, re.MULTILINE)
        assert re.search(f"^{command} TLS ClientHello: versions TLS 1.3, TLS 1.2.*X25519MLKEM768|x25519", text, re.M)
        assert re.search(f"^{reply} TLS ServerHello: TLS 1.3, TLS_AES_", text, re.MULTILINE)
        assert re.search(f"^{reply} TLS encrypted, [0-9]+ octets", text, re.MULTILINE)
        assert "TLS stands: TLSv1.3 TLS_AES_" in text
        assert re.search(f"^{command} [0-9]+ octets of mail data", text, re.MULTILINE)
        assert f"{command} AUTH {kind}{' (hidden)' * (lines is both[0] and kind == 'PLAIN')}" in lines
        for secret in (PASSWORD.encode(), b"\0quillon\0" + PASSWORD.encode()):
            assert base64.b64encode(secret).decode().rstrip("=") not in text
        assert PASSWORD not in text
        assert "Subject" not in text
    assert any(line.startswith("TLS certificate 0: /CN=") and "SHA-256" in line for line in both[0])
    assert any(re.match("message [0-9A-F/-]+, [0-9A-F/-]+$", line) for line in both[0])
    file = (tmp_path / "traces/out.txt").read_text()
    assert [line.partition("] ")[2] for line in file.splitlines()] == both[0]
    assert os.stat(tmp_path / "traces/out.txt").st_mode & 0o777 == 0o600


def test_only_what_is_meant(server: Callable[..., Server], tmp_path: Path, capsys: Any) -> None:
    port = free_port()
    with SinkThread() as one, SinkThread() as two:
        domains = [
            f'Domain "{name}.test" {{ Routes = ( "127.0.0.1:{to}" ) }}'
            for name, to in zip(("one", "two"), (one.port, two.port), strict=True)
        ]
        running = server(control(tmp_path) + relay(port, " ".join(domains) + " Binding other { }")).start()
        ask = Asked(running, capsys)
        wanted = {
            "all": [],
            "one": ["--domain", "one.test"],
            "sender": ["--address", "x@*"],
            "out": ["--out", "--domain", "*.test"],
            "peer": ["--peer", "127.0.0.0/8", "--in"],
            "other peer": ["--peer", "192.0.2.1"],
            "binding": ["--binding", "other"],
            "manual": ["*", "two.test", "manual.txt"],
            "message": ["--message", "00/00-00000-00000000"],
        }
        numbers = {name: ask.add(*words) for name, words in wanted.items()}
        assert ask("trace", "smtp", "add", "--in").startswith("Registered smtp tracer #")
        assert "there are 10 tracers already" in ask("trace", "smtp", "add", status=1)
        send(port, "b@one.test")
        send(port, "b@two.test", sender="x@sender.test")
        until(lambda: one.messages and two.messages, "delivery")
        until(lambda: "closed" in ask.lines(numbers["peer"])[-1], "the end of a session")

        def mails(name: str) -> list[str]:
            lines = (line.replace("rcpt", "RCPT") for line in ask.lines(numbers[name]))
            return sorted(line for line in lines if "RCPT TO" in line)

        in_one, in_two, out_one, out_two = (f"{way} RCPT TO:<b@{name}.test>" for way in "<>" for name in ("one", "two"))
        assert mails("all") == [in_one, in_two, out_one, out_two]
        assert mails("one") == [in_one, out_one]
        assert mails("sender") == [in_two, out_two]
        assert mails("out") == [out_one, out_two]
        assert mails("peer") == [in_one, in_two]
        assert mails("manual") == [out_two]
        for name in ("other peer", "binding", "message"):
            assert ask("trace", "smtp", "show", numbers[name]) == "no session has been traced yet\n"
        # what was said before it was clear that the session is meant is there as well
        assert ask.lines(numbers["sender"])[0].startswith("> 220 ")
        assert (tmp_path / "traces/manual.txt").read_text().count("\n") == len(ask.lines(numbers["manual"]))

        shown = ask("trace", "smtp", "show", numbers["one"])
        assert re.match(r"[0-9:]{8}\.[0-9]{3} 0/[0-9]+ in 127\.0\.0\.1:[0-9]+ > 220 ", shown)
        listed = ask("trace", "smtp", "list")
        assert re.search(rf"\[ *{numbers['one']}\]  --domain one.test: 2 sessions, [0-9]+ lines, in 1 workers", listed)
        assert ask("trace", "smtp", "remove", numbers["one"]) == f"Removed smtp tracer #{numbers['one']}\n"
        for words in (("show", numbers["one"]), ("remove", numbers["one"])):
            assert "no such trace" in ask("trace", "smtp", *words, status=1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "--peer", "mx.test"], "does not appear to be an IPv4 or IPv6 network"),
        (["add", "--in", "--out"], "--out stands twice, or against another one"),
        (["add", "--domain"], "--domain wants a value"),
        (["add", "x.test"], "x.test: not understood"),
        (["add", "--for", "soon"], "is no time"),
        (["add", "--message", "none"], "none"),
        (["add", "--file", "../../etc/passwd"], "recordings are files of Record_Folder"),
        (["add", "*", "*", "/tmp/x"], "recordings are files of Record_Folder"),
        (["show"], "trace smtp show N [AFTER]"),
        (["show", "1", "x"], "no such trace"),
        (["remove", "x"], "a number is wanted"),
        (["remove"], "write it so"),
    ],
)
def test_what_is_not_understood(
    server: Callable[..., Server], tmp_path: Path, capsys: Any, words: list[str], told: str
) -> None:
    running = server(control(tmp_path)).start()
    assert told in Asked(running, capsys)("trace", "smtp", *words, status=1)


def test_failures_of_tls_are_shown(server: Callable[..., Server], pki: Path, tmp_path: Path, capsys: Any) -> None:
    port = free_port()
    tls = inbound_tls(f"{pki}/server.pem", f"{pki}/server.key")
    with SinkThread(tls=tls) as sink, SinkThread() as clear:
        running = server(
            control(tmp_path)
            + relay(
                port,
                f"""Retry_Interval = 60 TLS = required
                Domain "name.test" {{ Routes = ( "127.0.0.1:{sink.port}" ) TLS_Verify = host TLS_CA = "{pki}/ca.pem" TLS_Names = ( x.test ) }}
                Domain "clear.test" {{ Routes = ( "127.0.0.1:{clear.port}" ) }}
                Domain "away.test" {{ Routes = ( "127.0.0.1:1" ) }}""",
            )
        ).start()
        ask = Asked(running, capsys)
        number = ask.add("--out", "--for", "1h")
        send(port, "b@name.test", "b@clear.test", "b@away.test")
        running.wait_attempts("b@name.test", "b@clear.test")
        running.wait_events("host_failure", 2)
        text = "\n".join(ask.lines(number))
    assert "TLS certificate does not verify: name_mismatch" in text
    assert "takes no mail: 451 4.7.6 [internal] STARTTLS required but not advertised, no_starttls" in text
    assert "for name.test, TLS = required, TLS_Verify = host" in text
    assert "Connection refused) (while not connected)" in text


def test_a_trace_is_followed_until_it_is_stopped(server: Callable[..., Server], tmp_path: Path, capsys: Any) -> None:
    port = free_port()
    running = server(control(tmp_path) + relay(port, "Suspend_Delivery = true"), workers=2).start()
    command = [sys.executable, "-m", "quillon", "console", "-c", str(running.file), "trace", "smtp", "follow", "--in"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stderr is not None
        assert following.stdout is not None
        assert "tracing sessions that begin now" in following.stderr.readline()
        for number in range(6):
            send(port, f"b{number}@partner.test")
        seen: set[str] = set()
        while len(seen) < 6:
            seen |= set(re.findall("(?i)rcpt to:<(b[0-9])@", following.stdout.readline()))
        following.terminate()
        rest, _ = following.communicate(timeout=20)
        assert following.returncode == 0
    assert not set(re.findall("(?i)rcpt to:<(b[0-9])@", rest)) & seen
    ask = Asked(running, capsys)
    until(lambda: ask("trace", "smtp", "list") == "nothing is traced\n", "the end of the trace")
    assert "wants a value" in ask("trace", "smtp", "follow", "--peer", status=1)
    assert ask("trace", "smtp", "follow", "--in", "--for", "1s") == ""


def test_a_disk_that_is_full_ends_the_trace_and_nothing_else(
    server: Callable[..., Server], tmp_path: Path, capsys: Any
) -> None:
    port = free_port()
    running = server(control(tmp_path) + relay(port, "Suspend_Delivery = true")).start()
    ask = Asked(running, capsys)
    number = ask.add("--file", "t.txt")
    os.truncate(tmp_path / "traces/t.txt", 1 << 30)  # a hole, as large as a file may be
    send(port, "b@partner.test")
    assert f"trace smtp: tracer #{number} has ended: its file has 1024 MiB" in "".join(running.log("paniclog.ec"))
    assert ask("trace", "smtp", "list") == "nothing is traced\n"
