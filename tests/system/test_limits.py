"""Clients that stay silent, trickle, flood or do not read, and limits on sessions."""

import contextlib
import smtplib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port, until


def _listen(port: int, more: str = "") -> str:
    return f"""Suspend_Delivery = true
    ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ {more} }} }}"""


def _all(sock: socket.socket) -> bytes:
    """Whatever comes until the connection ends."""
    sock.settimeout(20)
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            said += data
    return said


def test_a_silent_client_is_told_and_left(server: Callable[..., Server]) -> None:
    port = free_port()
    server(_listen(port, "Idle_Time = 1")).start()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        begin = time.monotonic()
        assert b"\r\n421 4.4.2 Idle timeout" in _all(sock)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("data", [False, True], ids=["commands", "data"])
def test_a_client_that_trickles_does_not_stay(server: Callable[..., Server], data: bool) -> None:
    port = free_port()
    server(_listen(port, "Idle_Time = 2 Session_Time = 3 Data_Time = 3")).start()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        if data:
            sock.sendall(b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 15:
                sock.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - begin < 8


def test_a_client_that_does_not_read_takes_no_memory_and_does_not_stay(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(_listen(port, "Idle_Time = 2 Max_Errors_Per_Connection = 0")).start()
    (pid,) = running.workers()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(1)
        sent = 0
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 10:
                sent += sock.send(b"HELP\r\n" * 10000)
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        assert size < 150 * 2**20, f"{size} after {sent} octets"

        def gone() -> bool:
            try:
                sock.send(b"x")
            except OSError:
                return True
            return False

        until(gone, "the end of the session", 15)


def test_sessions_are_limited(server: Callable[..., Server]) -> None:
    port = free_port()
    server(_listen(port, "Listener_Sessions = 2")).start()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert sock.recv(100).startswith(b"220")
        third = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert _all(third) == b"421 4.4.5 Service unavailable, concurrency limit reached\r\n"

    def has_room() -> bool:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            return sock.recv(100).startswith(b"220")

    until(has_room, "room again")


def test_a_looping_message_and_one_without_headers_are_refused(server: Callable[..., Server]) -> None:
    port = free_port()
    server(_listen(port, "Max_Received_Headers = 5")).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        for body, text in (
            ("Received: x\r\n" * 6 + MESSAGE, b"looping"),
            ("no header here\r\n\r\nbody\r\n", b"Required headers not found"),
        ):
            with pytest.raises(smtplib.SMTPDataError) as caught:
                client.sendmail("a@x.test", ["b@y.test"], body)
            assert text in caught.value.smtp_error


def test_a_client_that_hangs_up_before_the_answer_leaves_no_trouble(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(_listen(port)).start()
    text = "EHLO a.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n" + MESSAGE + ".\r\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        assert b"\r\n250 2.0.0 OK " in _all(sock)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(text.removesuffix(".\r\n").encode())
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("a@x.test", ["b@y.test"], MESSAGE)
    assert len(running.wait_events("reception", 2)) == 2
    assert "unexpected" not in "".join(running.log("paniclog.ec"))


def test_all_that_came_before_a_hang_up_is_answered(server: Callable[..., Server]) -> None:
    """However much was pipelined: commands that wait for their turn are no less answered than the first ones."""
    port = free_port()
    server(_listen(port)).start()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"EHLO a.test\r\n" + b"NOOP\r\n" * 5000 + b"RSET\r\n")
        sock.shutdown(socket.SHUT_WR)
        said = _all(sock)
    assert said.count(b"\r\n250 2.0.0 ") + said.count(b"\r\n250 2.3.0 ") >= 5001, said[-200:]


@pytest.mark.parametrize("policy", [False, True], ids=["no policy", "policy"])
def test_a_message_for_very_many_is_answered(server: Callable[..., Server], policy: bool, tmp_path: Path) -> None:
    """What grows with the square of the recipients held the worker for minutes; a client waits half of one here."""
    port, count = free_port(), 20_000 if not policy else 6_000
    (tmp_path / "q").mkdir()
    (tmp_path / "q/p.py").write_text("def validate_data_spool_each_rcpt(session, message):\n    pass\n")
    server(_listen(port) + (' policy "p" { module = p.py }' if policy else "")).start()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"HELO a.test\r\nMAIL FROM:<a@x.test>\r\n")
        assert [answers.readline()[:3] for _ in range(3)] == [b"220", b"250", b"250"]
        for n in range(count):
            sock.sendall(b"RCPT TO:<b%d@y.test>\r\n" % n)
            assert answers.readline().startswith(b"250")
        sock.sendall(b"DATA\r\n")
        assert answers.readline().startswith(b"354")
        sock.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        assert answers.readline().startswith(b"250")
