"""The console of a running server, its logs in formats of one's own, and TLS files that change under it."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.control.commands import COMMANDS, CONTROL, find, help_text
from quillon.control.rendering import merge_contexts, merge_mailq, text_contexts, text_domain, text_mailq
from quillon.lab.pki import Authority
from quillon.net.channel import Channel
from tests.support.clients import MESSAGE, ask_console, context
from tests.support.server import Server, free_port, until


class Running:
    def __init__(self, folder: Path, make: Callable[..., Server]) -> None:
        self.port = free_port()
        self.pki = folder / "pki"
        self.authority = Authority(self.pki)
        self.authority.write()
        self.authority.issue("mx", ["127.0.0.1"])
        self.socket = folder / "console"
        self.server = make(self.text(), workers=2).start()

    def text(self, more: str = "") -> str:
        return f"""
        Suspend_Delivery = true
        Control_Listener {{ Listen "{self.socket}" {{ File_Mode = 0600 }} }}
        ESMTP_Listener {{
          Relay_Hosts = ( 127.0.0.0/8 )
          TLS_Certificate = {self.pki}/mx.pem TLS_Key = {self.pki}/mx.key
          SMTP_Extensions = ( "STARTTLS" )
          Listen "127.0.0.1:{self.port}" {{ }}
        }}
        tls_macros {{ }}
        custom_logger "partner" {{
          mainlog = log/custom.cl
          namespace = "custom_logger,sieve,outbound_tls"
          reception_format = "%t@%i@R@%r@%R@%vctx_conn{{tls_protocol}}"
          rejection_format = "%H@%n"
          rejection_logfile = log/refused.cl
        }}
        {more}"""

    def ask(self, command: str) -> str:
        return ask_console(self.socket, command)

    def send(self) -> str:
        """One message over TLS; gives the serial number of the certificate shown."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.starttls(context=context(self.pki, "1.3", ""))
            shown = client.sock.getpeercert()["serialNumber"]  # type: ignore[union-attr]
            client.sendmail("a@example.test", ["b@partner.test"], MESSAGE)
        return str(shown)


@pytest.fixture
def running(tmp_path: Path, server: Callable[..., Server]) -> Running:
    return Running(tmp_path, server)


def test_commands(running: Running) -> None:
    for _ in range(8):
        running.send()
    assert stat.S_IMODE(os.stat(running.socket).st_mode) == 0o600
    assert running.ask("pid") == f"{running.server.pid}\n"
    assert running.ask("  VERSION ").startswith("quillon ")
    assert "tls show cache" in running.ask("help") == running.ask("")
    assert (
        running.ask("shutdown everything") == "error: shutdown everything: unknown command; help lists what there is\n"
    )
    cache = running.ask("tls show cache")
    assert cache.startswith("   1) server context\n")
    assert f"       certificate: {running.pki}/mx.pem\n" in cache
    assert running.ask("tls flush cache") == "Cache flush request submitted.\n"
    assert "               age: 0 seconds old\n" in running.ask("tls show cache")
    assert running.ask("tls rekey") == "Rekey request submitted.\n"
    metrics = running.ask("metrics").splitlines()
    assert 'quillon_receptions_total{version="TLSv1.3",verified="none",level="none"} 8' in metrics
    assert 'quillon_handshakes_total{result="ok",version="TLSv1.3"} 8' in metrics
    running.send()
    for name in ("events.json", "custom.cl"):
        log = running.server.folder / "log" / name
        log.rename(log.with_suffix(".1"))
    assert running.ask("reopen logs") == "logs reopened\n"
    running.send()
    until(lambda: len(running.server.log("custom.cl")) == 1, "a line in the new file")
    line = running.server.log("custom.cl")[0].split("@")
    assert line[2:] == ["R", "b", "partner.test", "TLSv1.3"]
    said = subprocess.run(
        [sys.executable, "-m", "quillon", "console", "-c", str(running.server.file), "tls", "show", "cache"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "server context" in said.stdout
    running.server.configure(running.text("TLS = perhaps"), workers=2)
    command = [sys.executable, "-m", "quillon", "console", "-c", str(running.server.file)]
    assert subprocess.run([*command, "pid"], capture_output=True, text=True, check=True).stdout.strip().isdigit()
    refused = subprocess.run([*command, "bogus"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "bogus: unknown command" in refused.stderr
    refused = subprocess.run([*command, "config", "reload"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "reload refused, the running configuration stays: " in refused.stderr
    assert "'perhaps'" in refused.stderr


def test_a_policy_that_takes_long_to_load_holds_up_nobody(running: Running) -> None:
    """It is tried in a process of its own: the console answers, a worker that dies is replaced, the end is at once."""
    folder = running.server.folder
    (folder / "slow.py").write_text(
        "import pathlib, time\nmark = pathlib.Path(__file__).with_suffix('.mark')\n"
        "if not mark.exists():\n    mark.touch()\n    time.sleep(8)\ndef validate_mailfrom(session):\n    pass\n"
    )
    slow = running.text() + ' policy "slow" { module = slow.py }'
    running.server.configure(slow, workers=2)
    answers: list[str] = []
    asking = [threading.Thread(target=lambda: answers.append(running.ask("config reload"))) for _ in range(3)]
    for thread in asking:
        thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    os.kill(running.server.workers()[0], 9)
    assert running.ask("version").startswith("quillon ")
    until(lambda: "# HELP" in running.ask("metrics") and len(set(running.server.workers())) >= 2, "a new worker")
    assert time.monotonic() - begun < 7
    assert answers == []
    for thread in asking:
        thread.join()
    assert ["configuration reloaded" in answer for answer in answers] == [True] * 3

    def reloads() -> int:
        return sum(event["text"] == "configuration reloaded" for event in running.server.events("notice"))

    # the two that came meanwhile were one reload more
    until(lambda: reloads() == 4, "both workers have reloaded twice", 60)
    (folder / "slow.py").write_text("import os\nos._exit(1)\n")
    assert "has ended; does a policy crash while it loads?" in running.ask("config reload")
    (folder / "slow.py").write_text("import time\ntime.sleep(60)\n")
    running.server.reload()
    time.sleep(0.5)
    begun = time.monotonic()
    assert running.server.stop() == 0
    assert time.monotonic() - begun < 10


def test_clients_that_misbehave_hold_up_nobody(running: Running) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for sock in silent:
        sock.connect(str(running.socket))
    time.sleep(0.2)
    running.send()
    for sock in silent:
        sock.close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(running.socket))
        sock.sendall(b"x" * 10000)
        assert b"too long" in sock.recv(1000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(running.socket))
        sock.sendall(b"\xff\x00 tls\n")
        assert b"unknown command" in sock.recv(1000)
    until(lambda: running.ask("pid") == f"{running.server.pid}\n", "the console answers")


def test_a_worker_that_dies_is_not_waited_for(running: Running) -> None:
    os.kill(running.server.workers()[0], 9)
    assert "# HELP" in running.ask("metrics")
    until(lambda: len(running.server.workers()) == 2, "a new worker")


def test_the_socket_follows_the_configuration(running: Running) -> None:
    other = running.socket.with_name("other")
    running.server.configure(running.text().replace(str(running.socket), str(other)), workers=2)
    assert "configuration reloaded" in running.ask("config reload")
    assert other.exists()
    until(lambda: not running.socket.exists(), "the old one goes")
    running.socket = other
    assert running.ask("pid")
    running.server.stop()
    assert not other.exists()


def test_a_listen_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ecelerity.conf"
    file.write_text('Control_Listener { Listen "run/console" { } }')
    assert main(["console", "-c", str(file), "version"]) == 1
    assert f"quillon console: {file}:1:" in capsys.readouterr().err
    file.write_text("TLS = no")
    assert main(["console", "-c", str(file), "version"]) == 1
    assert "there is no Control_Listener" in capsys.readouterr().err


def test_another_server_does_not_take_the_socket_away(running: Running, tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    other.write_text(f'SpoolBase = other PidFile = other.pid Control_Listener {{ Listen "{running.socket}" {{ }} }}')
    command = [sys.executable, "-m", "quillon", "serve", "-c", str(other)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f'Listen "{running.socket}": another server listens there' in done.stderr
    assert running.ask("version")
    running.server.kill()
    running.server.start()  # what a killed server leaves is taken over
    assert running.ask("version")


def test_a_refused_reload_leaves_the_console_where_it_is(running: Running) -> None:
    other = running.socket.with_name("other")
    running.server.configure(running.text("SpoolBase = elsewhere").replace(str(running.socket), str(other)), workers=2)
    running.server.reload()
    until(lambda: any("reload refused" in line for line in running.server.log("paniclog.ec")), "a refused reload")
    assert running.ask("pid")
    assert not other.exists()


def test_a_worker_that_does_not_read_holds_up_nobody(running: Running) -> None:
    worker = running.server.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert "1 workers did not answer" in running.ask("metrics")
        assert running.ask("pid")
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_full_channel_is_no_wait() -> None:
    ours, theirs = Channel.pair()
    sent = 0
    while ours.send({"do": "console", "id": sent}, wait=False):
        sent += 1
    assert sent > 10
    assert theirs.receive() == ({"do": "console", "id": 0}, [])
    theirs.sock.send(b"{ this is cut o")
    while (got := ours.receive()) is not None and got[0].get("event") != "unreadable":
        pass
    ours.close()
    theirs.close()


def test_a_channel_takes_no_more_than_it_can_carry() -> None:
    ours, theirs = Channel.pair()
    assert not ours.send({"do": "x" * 70000})
    with socket.socket() as sock:
        assert not ours.send({"do": "reload"}, [sock.fileno()] * 251)
    assert theirs.receive(wait=False) is None
    assert ours.send({"do": "reload"})
    assert theirs.receive(wait=False) == ({"do": "reload"}, [])
    ours.close()
    theirs.close()


def test_many_contexts_come_in_several_parts() -> None:
    rows = [{"kind": "server", "settings": {"certificate": f"/{n}.pem"}, "age": n, "in_use": 1} for n in range(100)]
    text = text_contexts(merge_contexts(rows + rows))
    assert text.count("server context") == 100
    assert "         in use by: 2 sessions\n" in text


def test_a_renewed_certificate_is_shown_without_a_restart(running: Running) -> None:
    first = running.send()
    running.authority.issue("mx", ["127.0.0.1"])
    until(lambda: all(running.send() != first for _ in range(10)), "the new certificate, from both workers")
    second = running.send()
    (running.pki / "mx.pem").write_text("broken")
    until(lambda: any("the old one stays in use" in line for line in running.server.log("paniclog.ec")), "a panic line")
    assert running.send() == second
    running.server.reload()
    until(lambda: any("reload refused" in line for line in running.server.log("paniclog.ec")), "a refused reload")
    assert running.send() == second


def test_files_that_vanish_are_not_missed(running: Running) -> None:
    """Nobody has connected yet: what was there at the start serves."""
    for name in ("mx.pem", "mx.key"):
        (running.pki / name).unlink()
    assert running.send()
    assert running.ask("tls flush cache") == "Cache flush request submitted.\n"
    assert running.send()
    until(lambda: any("cannot be loaded anew" in line for line in running.server.log("paniclog.ec")), "a panic line")


def test_a_worker_that_is_replaced_while_a_key_is_missing_gets_it_later(running: Running) -> None:
    key = running.pki / "mx.key"
    kept = key.read_bytes()
    key.unlink()
    for pid in running.server.workers():
        os.kill(pid, 9)
    until(lambda: any("No such file" in line for line in running.server.log("paniclog.ec")), "a panic line")
    until(lambda: len(running.server.workers()) == 2, "two new workers")
    key.write_bytes(kept)

    def sends() -> bool:
        try:
            return bool(running.send())
        except (OSError, smtplib.SMTPException):
            return False

    until(lambda: all(sends() for _ in range(6)), "TLS again, from both")


def test_refusals_go_to_their_own_file(running: Running) -> None:
    with smtplib.SMTP("127.0.0.1", running.port, timeout=30) as client:
        client.docmd("WHAT")
    until(lambda: running.server.log("refused.cl") == ["127.0.0.1@500 5.5.2 unrecognized command"], "the line")


def test_commands_are_found_by_their_words() -> None:
    for command in COMMANDS:
        words = [*command.name.split(), *(["x"] if command.words else [])]
        assert find(words) == (command, ["x"] if command.words else [])
        assert f"{command.name} {command.words}".strip() in help_text()
    assert find(["tls", "show", "cache", "now"])[0] is CONTROL
    assert find(["Show", "me"]) == (CONTROL, ["Show", "me"])


def test_a_command_that_no_worker_knows_is_an_error(running: Running) -> None:
    assert running.ask("tls flush").startswith("error: ")
    assert running.ask("mailq many") == "error: many: a number is wanted\n"


def test_mailq_adds_the_workers_up_and_lists_the_largest() -> None:
    one = [["default/b1", "big.test", 5, 1], ["default/b1", "small.test", 1, 0], ["1", "", 6, 1]]
    two = [["default/b1", "big.test", 2, 0], ["1", "", 2, 0]]
    lines = text_mailq(merge_mailq(one + two)).splitlines()
    assert [line.split() for line in lines[2:]] == [["default/b1", "big.test", "7", "1"], ["Total", "8", "1"]]


def test_a_domain_tells_why_it_waits(server: Callable[..., Server], tmp_path: Path) -> None:
    port = free_port()
    running = server(
        f"""Control_Listener {{ Listen "{tmp_path}/c" {{ }} }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
        Domain "quiet.test" {{ Suspend_Delivery = true TLS = required }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@x.test", ["b@quiet.test", "c@quiet.test"], MESSAGE)
    running.wait_events("reception", 2)

    def ask(command: str) -> str:
        return ask_console(f"{tmp_path}/c", command)

    said = ask("domain quiet.test")
    assert "worker 0: delivery is suspended" in said
    assert "messages: 2 may leave, 0 wait" in said
    assert "demanded: TLS = required, TLS_Verify = no (" in said
    assert "quiet.test       2       0" in ask("mailq")
    assert ask("domain other.test") == text_domain([])


def test_the_control_process_is_replaced_and_mail_goes_on(running: Running) -> None:
    (first,) = running.server.children("quillon:control")
    os.kill(first, signal.SIGKILL)
    running.send()
    until(lambda: running.server.children("quillon:control") not in ([], [first]), "another one")
    assert running.ask("version").startswith("quillon ")
    assert any("control process" in line and "started again" in line for line in running.server.log("paniclog.ec"))


def test_a_control_process_that_hangs_holds_up_neither_workers_nor_reload_nor_end(running: Running) -> None:
    (control,) = running.server.children("quillon:control")
    os.kill(control, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(running.socket))
        sock.sendall(b"metrics\n")
        os.kill(running.server.workers()[0], signal.SIGKILL)
        until(lambda: len(running.server.workers()) == 2, "a new worker")
        running.send()
        running.server.reload()
        until(lambda: "configuration reloaded" in running.server.said(), "the reload")
        assert running.server.stop() == 0
    assert not Path(f"/proc/{control}").exists()


def test_a_socket_of_the_console_comes_and_goes_with_a_reload(running: Running) -> None:
    other = running.socket.with_name("other")
    text = running.text()
    running.server.configure(
        text.replace("Control_Listener {", f'Control_Listener {{ Listen "{other}" {{ }} '), workers=2
    )
    assert running.ask("config reload") == "configuration reloaded\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(other))
        sock.sendall(b"version\n")
        assert sock.recv(100).startswith(b"quillon ")
    running.server.configure(text, workers=2)
    assert running.ask("config reload") == "configuration reloaded\n"
    assert not other.exists()
