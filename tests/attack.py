"""Attacks of one client, and what an honest client notices of them: `make attack`.

A server with one worker runs on loopback. While each attack is under way an honest client connects and sends a message;
printed are the seconds until its banner and its 250, and how many times as long that is as without the attack, the
median of several. The attacks on parsers run in this process: seconds of CPU for the size given. All is bounded, and ends
by itself within minutes.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quillon.mail import header
from quillon.mail.address_list import parse_address_list
from quillon.mailauth import dkim, spf
from quillon.mailauth.lookup import Records
from quillon.net.eager import at_once
from quillon.reception.content import longer_than
from tests.support.server import Server, free_port

HONEST = 7  # honest sessions per attack
CLIENTS = 50
RECIPIENTS = 20_000


class Honest:
    """One session of an honest client: seconds to its banner and to its 250."""

    def __init__(self, port: int) -> None:
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            file = sock.makefile("rb")
            assert file.readline().startswith(b"220")
            self.banner = time.perf_counter() - begun
            for line in (b"HELO a.test", b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@y.test>", b"DATA"):
                sock.sendall(line + b"\r\n")
                file.readline()
            sock.sendall(b"Subject: x\r\n\r\nhello\r\n.\r\n")
            assert file.readline().startswith(b"250")
            self.accepted = time.perf_counter() - begun


def measured(port: int) -> tuple[float, float]:
    found = [Honest(port) for _ in range(HONEST)]
    return statistics.median(one.banner for one in found), statistics.median(one.accepted for one in found)


class Attackers:
    """Clients that all do the same, in threads, until they are told to stop."""

    def __init__(self, port: int, count: int, octets: bytes, *, reads: bool = False) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(port, octets, reads), daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int, octets: bytes, reads: bool) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                sock.sendall(octets)
                while reads and not self._stop.is_set() and sock.recv(65536):
                    pass
                self._stop.wait(0.5)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)


def attacks() -> dict[str, tuple[int, bytes, bool]]:
    """Name to number of clients, what each sends, and whether it reads the answers."""
    recipients = b"".join(b"RCPT TO:<r%d@y.test>\r\n" % n for n in range(RECIPIENTS))
    message = b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n"
    lines = (b"x" * 998 + b"\r\n") * 1000
    return {
        f"{CLIENTS} clients, 64 KB of EHLO each, replies unread": (CLIENTS, b"EHLO a\r\n" * 8192, False),
        f"{CLIENTS} clients, 64 KB of NOOP each, replies unread": (CLIENTS, b"NOOP\r\n" * 10922, False),
        f"{RECIPIENTS} recipients of one message": (
            1,
            b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\n" + recipients + b"DATA\r\nSubject: x\r\n\r\nx\r\n.\r\n",
            True,
        ),
        "1 MB of lines as long as they may be, 4 clients": (4, message + b"\r\n" + lines + b".\r\n", True),
        f"{CLIENTS} requests of HTTP": (CLIENTS, b"POST / HTTP/1.1\r\n\r\n" + message + b".\r\n", True),
        f"{CLIENTS} hellos of TLS in clear": (CLIENTS, b"\x16\x03\x01\x02\x00" + b"x" * 512, True),
    }


def _lookup_of(record: str) -> Callable[[], object]:
    async def lookup(name: str, kind: str) -> Records:
        if kind == "TXT":
            return Records("ok", ["%{p}" * 16000 if name == "e.test" else record])
        return Records("ok", [f"h{n}.test" for n in range(20)] if kind == "PTR" else ["192.0.2.9"])

    return lambda: at_once(spf.check("192.0.2.1", "a@bank.fi", "h", "r", lookup))


def parsers() -> dict[str, Callable[[], object]]:
    """What is done with octets that were made to take long."""
    return {
        "20 MB of 'a ' in relaxed form": lambda: dkim.relaxed_body(b"a " * 10_000_000),
        "20 MB of blank lines in relaxed form": lambda: dkim.relaxed_body(b" \r\n" * 6_666_666),
        "4 MB of lines at the limit of 998": lambda: longer_than((b"x" * 998 + b"\r\n") * 4000, 998),
        "1 MB of lines at the limit of 65535": lambda: longer_than((b"x" * 65535 + b"\r\n") * 16, 65535),
        "a header field of 60,000 encoded words": lambda: header.decoded("=?a?q? " * 60_000),
        "an address list of 200,000 brackets": lambda: parse_address_list("<" * 200_000),
        "SPF with 700 macros of names": _lookup_of("v=spf1 exists:" + "%{p}." * 700 + "x.test -all"),
        "SPF whose explanation has 16,000": _lookup_of("v=spf1 -all exp=e.test"),
    }


def main() -> int:
    print("In this process                                        CPU seconds")
    for name, attack in parsers().items():
        begun = time.process_time()
        attack()
        print(f"{name:54} {time.process_time() - begun:8.3f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="quillon-attack-") as folder:
        port = free_port()
        listen = f"""Suspend_Delivery = true RFC2822_Max_Line_Length = pedantic
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
        running = Server(Path(folder) / "q", listen).start()
        try:
            measured(port)
            banner, accepted = measured(port)
            print(
                f"\nAn honest client meanwhile                             banner            250\n{'no attack':54}",
                end="",
            )
            print(f" {banner * 1000:6.1f} ms       {accepted * 1000:6.1f} ms", flush=True)
            for name, (count, octets, reads) in attacks().items():
                clients = Attackers(port, count, octets, reads=reads)
                time.sleep(1.0)
                first, whole = measured(port)
                clients.end()
                print(
                    f"{name:54} {first * 1000:6.1f} ms {first / banner:5.1f}x {whole * 1000:6.1f} ms {whole / accepted:5.1f}x",
                    flush=True,
                )
        finally:
            running.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
