"""Alerts of a running server, by mail and webhook."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import signal
import smtplib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quillon.lab.pki import Authority
from quillon.lab.sink import inbound_tls
from tests.support.clients import MESSAGE, ask_console
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread


class Hook:
    """A web server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def keys(self, state: str) -> list[str]:
        return [one["key"] for one in self.told if one["state"] == state]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


def test_a_partner_that_drops_starttls_is_told_of_by_mail_and_webhook(
    tmp_path: Path, server: Callable[..., Server], hook: Hook
) -> None:
    authority = Authority(tmp_path / "pki")
    authority.write()
    authority.issue("mx", ["127.0.0.1"])
    operator, port, partner = SinkThread(), free_port(), free_port()
    text = f"""
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
    Control_Listener {{ Listen "{tmp_path}/console" {{ }} }}
    Domain "partner.test" {{ Gateway = "127.0.0.1:{partner}" }}
    Domain "ops.test" {{ Gateway = "127.0.0.1:{operator.port}" }}
    TLS = ifavailable  Idle_Timeout = 0  Host_Failure_Retry = 0
    alerts {{ mail_to = ( "ops@ops.test" ) webhook = "http://127.0.0.1:{hook.port}/hook" }}
    """
    running = server(text, workers=2).start()

    def send() -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("a@x.test", ["b@partner.test"], MESSAGE)

    def ask(command: str) -> str:
        return ask_console(f"{tmp_path}/console", command)

    assert ask("alerts") == "nothing is wrong that alerts are about\n"
    for tls in (True, False, True):
        sink = SinkThread(
            port=partner, tls=inbound_tls(f"{tmp_path}/pki/mx.pem", f"{tmp_path}/pki/mx.key") if tls else None
        )
        for _ in range(6):
            send()
        until(lambda sink=sink: len(sink.messages) >= 6, "all messages")  # type: ignore[misc]
        if not tls:
            until(lambda: hook.keys("alert") == ["tls partner.test lost"], "the alert")
            assert "mail to partner.test goes in clear, and went over TLSv1.3 before" in ask("alerts")
        sink.stop()
    until(lambda: hook.keys("over") == ["tls partner.test lost"], "that it is over")
    assert hook.told[0]["host"] == "mx.quillon.test"
    assert "quillon tls-probe --domain partner.test" in hook.told[0]["action"]
    until(lambda: len(operator.messages) == 2, "two mails")
    first, last = (email.message_from_bytes(m.data, policy=email.policy.default) for m in operator.messages)
    assert first["Subject"].startswith("[alert] mx.quillon.test: mail to partner.test goes in clear")
    assert last["Subject"] == "[over] mx.quillon.test: TLS to partner.test works again"
    assert first["Auto-Submitted"] == "auto-generated"
    assert str(operator.messages[0].sender) == ""
    assert sum("alert: mail to partner.test" in line for line in running.log("paniclog.ec")) == 1
    operator.stop()


def test_a_worker_that_ends_and_a_full_disk_are_told_of(server: Callable[..., Server], hook: Hook) -> None:
    running = server(f"""alerts {{ webhook = "http://127.0.0.1:{hook.port}" free_space = 900000000000 }}""").start()
    until(lambda: "disk" in hook.keys("alert"), "the disk")
    os.kill(running.workers()[0], signal.SIGKILL)
    until(lambda: "worker 0" in hook.keys("over"), "a new worker")
    until(lambda: "worker 0" in hook.keys("alert"), "the end of the other")
    assert "ended with signal SIGKILL" in next(one["text"] for one in hook.told if one["key"] == "worker 0")


def test_a_webhook_that_does_not_answer_is_told_in_the_paniclog(server: Callable[..., Server]) -> None:
    running = server(f"""alerts {{ webhook = "http://127.0.0.1:{free_port()}" free_space = 900000000000 }}""").start()
    until(lambda: any("alert: could not be sent" in line for line in running.log("paniclog.ec")), "a panic line")


@pytest.mark.parametrize(
    ("stanza", "words"),
    [
        ('mail_to = ( "no address" )', "alerts: "),
        ('mail_to = ( "ops" )', "mail_to: a domain is needed"),
        ('webhook = "ftp://x"', "is no http:// or https:// address"),
    ],
)
def test_a_stanza_that_would_reach_nobody_is_refused(tmp_path: Path, stanza: str, words: str) -> None:
    file = tmp_path / "q.conf"
    file.write_text(f"alerts {{ {stanza} }}")
    command = [sys.executable, "-m", "quillon", "check", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stdout + done.stderr
