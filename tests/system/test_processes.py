"""Processes: start, reload, rotation, drain, a worker that dies, privileges, several instances."""

import os
import pwd
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.mail.reply import Reply
from quillon.smtp.events import MailFrom, RcptTo
from tests.support.clients import MESSAGE
from tests.support.peers import require_root
from tests.support.server import Server, answers, free_port, until
from tests.support.sinks import SinkThread, replying

LISTEN = 'ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}\n'


def _send(port: int, recipient: str = "bob@partner.test", sender: str = "alice@example.test") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail(sender, [recipient], MESSAGE)


def test_sigterm_ends_cleanly_and_the_spool_keeps_what_is_left(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(LISTEN.format(port=port) + "Suspend_Delivery = true").start()
    assert (running.folder / "quillon.pid").read_text().strip() == str(running.pid)
    _send(port)
    assert running.stop() == 0
    assert not (running.folder / "quillon.pid").exists()
    assert not answers(port)
    sink = SinkThread()
    running.configure(LISTEN.format(port=port) + f'Gateway = "127.0.0.1:{sink.port}"')
    running.start()
    # the message was queued for partner.test; the gateway rules what comes in from now on
    _send(port, "carol@partner.test")
    until(lambda: sink.sink.caught, "delivery")
    assert running.stop() == 0
    sink.stop()


def test_clients_are_told_at_drain_and_a_message_under_way_is_finished(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(LISTEN.format(port=port) + "Suspend_Delivery = true").start()
    idle = socket.create_connection(("127.0.0.1", port))
    idle.recv(100)
    busy = smtplib.SMTP("127.0.0.1", port, timeout=30)
    busy.ehlo()
    busy.mail("a@example.test")
    busy.rcpt("b@partner.test")
    busy.docmd("DATA")
    busy.send(b"Subject: half\r\n")
    until(lambda: answers(port), "still up")
    import time

    time.sleep(0.2)
    running.process.terminate()
    assert idle.recv(1000).startswith(b"421 4.3.2")
    busy.send(b"\r\nrest\r\n.\r\n")
    assert busy.getreply()[0] == 250
    busy.close()
    idle.close()
    assert running.ended(30) == 0


def test_a_worker_that_dies_is_replaced_and_its_mail_goes_on(server: Callable[..., Server]) -> None:
    port = free_port()
    sink = SinkThread(replying(451, "4.2.0", "later", RcptTo))
    running = server(
        LISTEN.format(port=port) + f'Retry_Interval = 2 Gateway = "127.0.0.1:{sink.port}" Host_Failure_Retry = 1',
        workers=2,
    ).start()
    for _ in range(6):
        _send(port)
    running.wait_events("attempt", 6)
    before = running.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    sink.sink.answer = lambda _: None
    until(lambda: len(sink.sink.caught) == 6, "delivery after the death of the workers")
    assert len(running.workers()) == 2
    assert not set(before) & set(running.workers())
    assert any("ended with signal SIGKILL; it is started again" in line for line in running.log("paniclog.ec"))
    sink.stop()


def test_reload_takes_a_good_configuration_and_keeps_the_old_one_for_a_faulty(server: Callable[..., Server]) -> None:
    first, second = free_port(), free_port()
    head = "Suspend_Delivery = true\n"
    running = server(head + LISTEN.format(port=first), workers=2).start()
    session = smtplib.SMTP("127.0.0.1", first, timeout=30)
    session.ehlo()
    running.configure(head + LISTEN.format(port=second).replace("ESMTP_Listener {", "ESMTP_Listner {"), workers=2)
    running.reload()
    until(lambda: any("reload refused" in line for line in running.log("paniclog.ec")), "the refusal")
    assert "ESMTP_Listner" in "".join(running.log("paniclog.ec"))
    _send(first)
    both = LISTEN.format(port=first).replace('" { }', f'" {{ }} Listen "127.0.0.1:{second}" {{ }}', 1)
    running.configure(head + both, workers=2)
    running.reload()
    until(lambda: answers(second), "the new listener")
    until(lambda: len(running.events("notice")) >= 2, "both workers have reloaded")
    _send(second)
    # a session of the older configuration is told so at its next MAIL FROM
    assert session.docmd("MAIL FROM:<a@example.test>") == (421, b"4.3.2 Reconfiguration in progress")
    session.close()


def test_tls_that_is_required_later_holds_for_mail_already_queued(server: Callable[..., Server]) -> None:
    sink = SinkThread(replying(450, "4.2.1", "later", RcptTo))
    port = free_port()
    common = (
        LISTEN.format(port=port)
        + "Retry_Interval = 2 Max_Retry_Interval = 2 Host_Failure_Retry = 1 Drain_Timeout = 1\n"
    )
    stanza = f'Domain partner.test {{{{ Gateway = "127.0.0.1:{sink.port}" {{tls}} }}}}'
    running = server(common + stanza.format(tls="")).start()
    _send(port)
    running.wait_events("attempt")
    running.configure(common + stanza.format(tls="TLS = required"))
    running.reload()
    until(lambda: running.events("notice"), "reload")
    sink.sink.answer = lambda _: None
    later = running.wait_events("attempt", 2)[1]
    assert later["cause"] == "no_starttls"
    assert not sink.sink.caught
    sink.stop()


def test_a_change_that_needs_a_restart_is_refused_at_reload(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server(LISTEN.format(port=port)).start()
    running.configure("SpoolBase = elsewhere\n" + LISTEN.format(port=port))
    running.reload()
    until(
        lambda: any("spoolbase has changed, which needs a restart" in line for line in running.log("paniclog.ec")),
        "refusal",
    )
    assert answers(port)


def test_logs_are_reopened_at_sighup(server: Callable[..., Server]) -> None:
    port = free_port()
    running = server("Suspend_Delivery = true\n" + LISTEN.format(port=port)).start()
    _send(port)
    running.wait_events("reception")
    log = running.folder / "log"
    for file in list(log.iterdir()):
        file.rename(file.with_suffix(file.suffix + ".1"))
    running.reload()
    until((log / "mainlog.ec").exists, "new files")
    until(lambda: running.events("notice"), "reload")
    _send(port)
    running.wait_events("reception")
    assert len([line for line in running.log("mainlog.ec") if "@R@" in line]) == 1


def test_root_is_given_up(server: Callable[..., Server], tmp_path: Path) -> None:
    require_root()
    port = free_port()
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/") and path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    running = server(
        LISTEN.format(port=port) + "Suspend_Delivery = true\nSecurity { User = nobody Group = nogroup }", workers=2
    )
    running.start()
    _send(port)
    uid = pwd.getpwnam("nobody").pw_uid
    for pid in [running.pid, *running.workers()]:
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status
    assert (running.folder / "spool/worker-0/spool.db").stat().st_uid == uid
    assert running.stop() == 0


def test_two_instances_side_by_side_and_one_address_for_one_only(server: Callable[..., Server]) -> None:
    ports = [free_port(), free_port()]
    one = server(LISTEN.format(port=ports[0]), name="one").start()
    server(LISTEN.format(port=ports[1]), name="two").start()
    third = server(LISTEN.format(port=ports[0]), name="three")
    done = subprocess.run(
        [sys.executable, "-m", "quillon", "serve", "-c", str(third.file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f'Listen "127.0.0.1:{ports[0]}": Address already in use' in done.stderr
    four = server(LISTEN.format(port=free_port()), name="four")
    four.file.write_text(four.file.read_text().replace("SpoolBase = spool", f"SpoolBase = {one.folder}/spool"))
    done = subprocess.run(
        [sys.executable, "-m", "quillon", "serve", "-c", str(four.file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "is in use by another process" in done.stderr


@pytest.mark.parametrize("change", [("Workers = 1", "Workers = 3"), ("Workers = 3", "Workers = 1")])
def test_another_number_of_workers_loses_nothing(server: Callable[..., Server], change: tuple[str, str]) -> None:
    port = free_port()
    sink = SinkThread()
    running = server(f'Gateway = "127.0.0.1:{sink.port}" Suspend_Delivery = true\n' + LISTEN.format(port=port))
    running.file.write_text(running.file.read_text().replace("Workers = 1", change[0]))
    running.start()
    for number in range(9):
        _send(port, f"r{number}@partner.test")
    running.stop()
    text = running.file.read_text().replace(change[0], change[1]).replace("Suspend_Delivery = true", "")
    running.file.write_text(text)
    running.start()
    until(lambda: len(sink.sink.caught) == 9, "all messages")
    assert len({caught.recipients for caught in sink.sink.caught}) == 9
    sink.stop()


def test_a_full_disk_is_a_451_and_never_a_250(server: Callable[..., Server]) -> None:
    """Files of the worker may not grow beyond the middle of a message."""
    import resource

    port = free_port()
    running = server("Suspend_Delivery = true\n" + LISTEN.format(port=port)).start()
    _send(port)
    (pid,) = running.workers()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            client.sendmail("a@example.test", ["b@partner.test"], MESSAGE + "x\r\n" * 10000)
        assert caught.value.smtp_code == 451
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        client.sendmail("a@example.test", ["b@partner.test"], MESSAGE)
    assert any("write failed" in line for line in running.log("paniclog.ec"))


def test_outcomes_end_in_log_spool_and_notification(server: Callable[..., Server]) -> None:
    answers_ = {"gone": Reply(550, "5.1.1", "no such user"), "later": Reply(450, "4.2.1", "mailbox busy")}
    sink = SinkThread(lambda e: answers_.get(e.mailbox.local) if isinstance(e, RcptTo) else None)
    port = free_port()
    running = server(LISTEN.format(port=port) + f'Gateway = "127.0.0.1:{sink.port}"').start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("alice@example.test", ["ok@partner.test", "gone@partner.test", "later@partner.test"], MESSAGE)
    events = running.wait_events("attempt", 4)
    outcomes = {event["recipient"]: event["outcome"] for event in events}
    assert outcomes == {
        "ok@partner.test": "delivered",
        "gone@partner.test": "permanent_failure",
        "later@partner.test": "transient_failure",
        "alice@example.test": "delivered",
    }
    notice = next(c for c in sink.sink.caught if c.sender == "")
    assert notice.recipients == ("alice@example.test",)
    text = notice.data.decode()
    assert "Final-Recipient: rfc822; gone@partner.test" in text
    assert "Status: 5.1.1" in text
    assert "Diagnostic-Code: smtp; 550 5.1.1 no such user" in text
    assert "Subject: hello" in text
    import email

    assert email.message_from_string(text).get_content_type() == "multipart/report"
    running.stop()
    assert len(running.spooled()) == 1
    sink.stop()


def test_a_bounce_that_cannot_be_delivered_makes_no_other(server: Callable[..., Server]) -> None:
    sink = SinkThread(replying(550, "5.7.1", "nothing for you", MailFrom))
    port = free_port()
    running = server(LISTEN.format(port=port) + f'Gateway = "127.0.0.1:{sink.port}"').start()
    _send(port)
    events = running.wait_events("attempt", 2)
    assert [event["sender"] for event in events] == ["alice@example.test", ""]
    import time

    time.sleep(0.5)
    assert len(running.events("attempt")) == 2
    sink.stop()


def test_connections_are_kept_for_the_next_message_and_closed_when_idle(server: Callable[..., Server]) -> None:
    sink = SinkThread()
    port = free_port()
    running = server(
        LISTEN.format(port=port) + f'Gateway = "127.0.0.1:{sink.port}" Idle_Timeout = 1 Domain 127.0.0.1 {{ }}'
    ).start()
    for number in range(1, 6):
        _send(port)
        running.wait_events("attempt", number)
    assert sink.sink.sessions == 1
    import time

    time.sleep(1.8)
    _send(port)
    until(lambda: len(sink.sink.caught) == 6, "one more")
    assert sink.sink.sessions == 2
    running.stop()
    sink.stop()


def test_the_systemd_notification(
    server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        running = server(LISTEN.format(port=free_port())).start()
        assert manager.recv(1000).startswith(b"READY=1")
        running.reload()
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(1000) == b"READY=1"
        running.stop()
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_host_that_hangs_up_at_once_is_not_hammered(server: Callable[..., Server]) -> None:
    import threading
    import time

    listening = socket.create_server(("127.0.0.1", 0))
    sessions = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            sessions.append(1)
            with sock:
                sock.sendall(b"220 hello\r\n")
                sock.recv(1000)
                sock.sendall(b"250 hello\r\n")

    threading.Thread(target=serve, daemon=True).start()
    port = free_port()
    gateway = f'Gateway = "127.0.0.1:{listening.getsockname()[1]}" Host_Failure_Retry = 1'
    running = server(LISTEN.format(port=port) + gateway).start()
    for _ in range(3):
        _send(port)
    events = running.wait_events("attempt", 3)
    assert {event["outcome"] for event in events} == {"transient_failure"}
    time.sleep(1)
    assert len(sessions) <= 6
    listening.close()


def test_a_source_address_that_is_not_here_does_not_rest_the_host(server: Callable[..., Server]) -> None:
    port = free_port()
    sink = SinkThread()
    (running := server("")).folder.joinpath("lost.lua").write_text(
        """require("msys.core")
local mod = {}
function mod:validate_set_binding(msg)
  if msg:rcptto() == "lost@partner.test" then msg:binding("lost") end
end
msys.registerModule("lost", mod)
"""
    )
    running.configure(
        LISTEN.format(port=port)
        + f'Gateway = "127.0.0.1:{sink.port}" Host_Failure_Retry = 600 Binding "lost" {{ Bind_Address = "192.0.2.1" }}'
        + ' scriptlet "s" { script "lost" { source = "lost" } }'
    )
    running.start()
    _send(port, "lost@partner.test")
    [event] = running.wait_events("attempt", 1)
    assert "Cannot assign requested address" in event["reply"], event
    _send(port)
    until(lambda: sink.sink.caught, "delivery")
    sink.stop()
