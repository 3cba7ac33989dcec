"""Under TLS = required not one octet of a message or its envelope leaves in the clear, however the peer fails.

The peers are raw sockets that record every octet. What may be seen in the clear is the EHLO, STARTTLS and QUIT.
"""

import contextlib
import re
import smtplib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port, until

EHLO = b"250-peer.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n"
# name: what is said to EHLO, what to STARTTLS (None closes), whether the connection is closed behind it
PEERS: dict[str, tuple[bytes, bytes | None, bool]] = {
    "not_offered": (b"250-peer.test\r\n250 PIPELINING\r\n", b"502 no\r\n", False),
    "helo_only": (b"502 what is EHLO\r\n", b"502 no\r\n", False),
    "refused_4xx": (EHLO, b"454 4.7.0 no key\r\n", False),
    "refused_5xx": (EHLO, b"501 5.5.4 no\r\n", False),
    "closed_instead": (EHLO, None, True),
    "closed_after": (EHLO, b"220 go\r\n", True),
    "garbage": (EHLO, b"220 go\r\n", False),
    "injected": (EHLO, b"220 go\r\n250-peer.test\r\n250 PIPELINING\r\n", False),
    "injected_greedy": (EHLO, b"220 go\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n", False),
    "alert": (EHLO, b"220 go\r\n", False),
    "silent": (EHLO, b"", False),
}
ALLOWED = re.compile(rb"(EHLO [\w.]+\r\n|HELO [\w.]+\r\n|STARTTLS\r\n|QUIT\r\n)*\Z")


class Recorder:
    """One peer. After STARTTLS it keeps recording; what looks like a TLS record is left out of `clear`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clear = b""
        self.sessions = 0
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._sock.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._sock.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            self.sessions += 1
            threading.Thread(target=self._session, args=(sock,), daemon=True).start()

    def _session(self, sock: socket.socket) -> None:
        ehlo, starttls, close = PEERS[self.name]
        with sock, contextlib.suppress(ConnectionError):  # a server that is stopped hangs up
            sock.sendall(b"220 peer.test ESMTP\r\n")
            while data := _receive(sock):
                if data[:1] in (b"\x16", b"\x15"):  # a TLS handshake or alert record
                    if self.name == "garbage":
                        sock.sendall(b"250 this is no ServerHello\r\n")
                    elif self.name == "alert":
                        sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
                    continue
                self.clear += data
                if data.startswith((b"EHLO", b"HELO")):
                    sock.sendall(b"250 peer.test\r\n" if data.startswith(b"HELO") else ehlo)
                elif data.startswith(b"STARTTLS"):
                    if starttls is None:
                        return
                    sock.sendall(starttls)
                    if close:
                        return
                else:
                    # a peer that takes whatever it can get
                    sock.sendall(b"354 go\r\n" if b"DATA" in data else b"250 ok\r\n")


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


@pytest.mark.parametrize("name", PEERS)
def test_nothing_leaves_in_the_clear(server: Callable[..., Server], name: str) -> None:
    peer = Recorder(name)
    port = free_port()
    running = server(
        f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        EHLO_Timeout = 2 Retry_Interval = 1 Max_Retry_Interval = 1 Host_Failure_Retry = 1
        Domain partner.test {{ Gateway = "127.0.0.1:{peer.port}" TLS = required }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("secret-sender@example.test", ["secret-recipient@partner.test"], MESSAGE)
    count = 1 if name == "silent" else 2
    events = running.wait_events("attempt", count, 20 if count == 2 else 70)
    assert all(event["outcome"] == "transient_failure" and event["cause"] for event in events)
    running.stop()
    peer.close()
    assert peer.sessions >= count
    assert ALLOWED.match(peer.clear), peer.clear


def test_an_opportunistic_message_falls_back_over_a_fresh_connection(server: Callable[..., Server]) -> None:
    peer = Recorder("garbage")
    port = free_port()
    running = server(
        f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        Drain_Timeout = 1
        Domain partner.test {{ Gateway = "127.0.0.1:{peer.port}" TLS = ifavailable }}
        Domain strict.test {{ Gateway = "127.0.0.1:{peer.port}" TLS = ifavailable TLS_Ifavailable_Fallback = false }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@example.test", ["strict@strict.test"], MESSAGE)
        running.wait_events("attempt", 1)
        assert b"strict@" not in peer.clear
        client.sendmail("a@example.test", ["loose@partner.test"], MESSAGE)
    until(lambda: b"RCPT TO:<loose@partner.test>" in peer.clear, "the fallback")
    assert peer.sessions == 3
    peer.close()


def test_the_recorder_would_notice(tmp_path: Path) -> None:
    """The check of these tests fails where mail does leave in the clear."""
    peer = Recorder("not_offered")
    with socket.create_connection(("127.0.0.1", peer.port)) as sock:
        sock.sendall(b"EHLO a.test\r\n")
        time.sleep(0.2)
        sock.sendall(b"MAIL FROM:<a@b>\r\n")
        until(lambda: b"MAIL" in peer.clear, "the record")
    assert not ALLOWED.match(peer.clear)
    peer.close()
