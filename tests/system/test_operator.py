"""An operator's week at the console of a running server: see what waits and why, send it, hold it, move it, drop it."""

from __future__ import annotations

import getpass
import json
import shlex
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quillon.app.suspended import change
from quillon.cli.main import main
from quillon.queue.suspension import Suspension
from tests.support.clients import MESSAGE
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.zones import Zones


class Operated:
    """Two workers. Mail for partner.test goes to a port where nobody listens until `repair`, and is tried once an
    hour; mail for other.test goes to a sink."""

    def __init__(self, folder: Path, make: Callable[..., Server], more: str = "") -> None:
        self.port, self.dead = free_port(), free_port()
        self.sink = SinkThread()
        self.other = SinkThread()
        self.folder = folder
        self.more = more
        self.server = make(self.text(), workers=2).start()

    def text(self, more: str = "") -> str:
        return f"""
        Control_Listener {{ Listen "{self.folder}/console" {{ File_Mode = 0600 }} }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{self.port}" {{ }} }}
        Retry_Interval = 3600  Connect_Timeout_To_Delay = 0  Host_Failure_Retry = 0
        Binding "second" {{ EHLO_Hostname = second.quillon.test }}
        Domain "partner.test" {{ Gateway = "127.0.0.1:{self.dead}" }}
        Domain "other.test" {{ Gateway = "127.0.0.1:{self.other.port}" }}
        Domain "127.0.0.1" {{ TLS = no }}
        {self.more} {more}"""

    def send(self, *recipients: str, sender: str = "news@example.test") -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.sendmail(sender, recipients, MESSAGE)

    def say(self, *words: str, status: int = 0) -> str:
        """What the command would print, or say on stderr where it fails; without a process of its own."""
        options, rest = [word for word in words if word == "--json"], [word for word in words if word != "--json"]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(120)
            sock.connect(f"{self.folder}/console")
            sock.sendall(f"{'json ' * len(options)}{shlex.join(rest)}\n".encode())
            said = b""
            while data := sock.recv(65536):
                said += data
        text = said.decode()
        assert text.startswith("error: ") == bool(status), text
        return text.replace("error: ", "quillon console: ", 1) if status else text

    def result(self, *words: str) -> Any:
        return json.loads(self.say("--json", *words))["result"]

    def waits(self, count: int) -> None:
        """Until so many messages are delayed."""
        until(lambda: self.result("summary")["delayed"] == count, f"{count} delayed messages")

    def repair(self) -> SinkThread:
        """The partner's host is back."""
        self.sink.stop()
        self.sink = SinkThread(port=self.dead)
        return self.sink

    def end(self) -> None:
        self.sink.stop()
        self.other.stop()


@pytest.fixture
def operated(tmp_path: Path, server: Callable[..., Server]) -> Iterator[Operated]:
    made = Operated(tmp_path, server)
    yield made
    made.end()


def test_what_waits_is_seen_and_sent_once_the_partner_is_back(operated: Operated) -> None:
    for number in range(6):
        operated.send(f"b{number}@partner.test")
    operated.waits(6)
    gateway = f"127.0.0.1:{operated.dead}"
    assert operated.result("mailq")["queues"] == [
        {"binding": "default/default", "domain": gateway, "active": 0, "delayed": 6}
    ]
    assert f"Domain: {gateway:>40}  C:    0  A:      0  D:      6  S:      0\n" in operated.say("delayed", "5")
    assert gateway not in operated.say("delayed", "6")
    assert "        Delayed Queue Size: 6\n" in operated.say("summary")
    assert "Delayed Queue Size: 6" in operated.say("binding", "summary", "default")
    found = operated.result("find", "--recipient", "b3@*")
    assert found["total"] == 1
    message = found["items"][0]
    assert message["last_reply"].startswith("451 4.4.1 ")
    assert message["tries"] == 1
    listed = operated.say("showqueue", gateway, "2,4").splitlines()
    assert len(listed) == 4
    assert listed[0].startswith("[delayed/default] ")
    details = operated.say("message", "details", "full", message["id"])
    assert "Recipient: b3@partner.test\n" in details
    assert details.endswith(MESSAGE.replace("\r\n", "\n"))
    why = operated.say("message", "why", message["id"])
    assert "why: its next attempt is due, after 1 that failed, for 3" in why
    assert " s (retry_interval in " in why
    assert "ecelerity.conf:" in why
    assert "no host" not in operated.say("domain", "other.test")

    sink = operated.repair()
    assert operated.say("message", "retry", message["id"]) == "Message requeued for delivery\n"
    until(lambda: len(sink.messages) == 1, "the one message")
    assert operated.say("flush", "domain", "partner.test") == "partner.test flushed.  5 messages requeued.\n"
    until(lambda: len(sink.messages) == 6, "all messages")
    until(lambda: operated.result("summary")["delayed"] == 0, "nothing waits")
    assert operated.result("summary")["delivered"] == 6
    assert operated.say("active").split() == ["Total:", "A:", "0", "D:", "0", "S:", "6"]
    binding = operated.say("binding", "summary", "default")
    assert (
        "        Successfully Delivered Messages: 6\n        Failed Messages: 0\n        Received Messages: 6\n"
        in binding
    )
    assert operated.say("summary", "reset") == "statistics cleared.\n"
    assert operated.result("summary")["delivered"] == 0


def test_mail_is_dropped_and_bounced_by_who_sent_it(operated: Operated) -> None:
    for number in range(4):
        operated.send(f"b{number}@partner.test", sender="spam@example.test")
    for number in range(3):
        operated.send(f"b{number}@partner.test")
    operated.send("b@partner.test", sender="me@other.test")
    operated.waits(8)
    refused = operated.say("discard", "--sender", "SPAM@*", status=1)
    assert refused == "quillon console: 4 messages would be discarded; with --yes it is done\n"
    assert operated.result("discard", "--sender", "spam@*", "--yes") == {
        "count": 4, "done": True, "what": "discarded",
    }  # fmt: skip
    assert operated.result("find", "--all")["total"] == 4
    me = operated.result("find", "--sender", "me@other.test")["items"][0]["id"]
    assert operated.say("message", "fail", me) == "Message failed\n"
    until(lambda: len(operated.other.messages) == 1, "the notification")
    assert b"554 5.7.0 [internal] manually failed" in operated.other.messages[0].data
    assert operated.say("message", "fail", me, status=1).endswith("no message of this id waits here\n")
    said = operated.say("fail", "domain", "quiet", "partner.test", "no", "longer", "served", "--yes")
    assert said == "partner.test purged, 3 messages failed.\n"
    assert operated.result("find", "--all")["total"] == 0
    assert len(operated.other.messages) == 1

    def failed() -> list[str]:
        return [one["reply"] for one in operated.server.events("attempt") if one["outcome"] == "permanent_failure"]

    until(lambda: len(failed()) == 8, "eight failures in the log")
    assert failed().count("554 5.7.0 no longer served") == 3
    who = getpass.getuser()
    noted = [event["text"] for event in operated.server.events("notice")]
    assert any(text.startswith(f"console: {who}: discard --sender spam@* --yes: ") for text in noted)
    # nothing comes back after a restart
    assert operated.server.stop() == 0
    operated.server.start()
    assert operated.result("find", "--all")["total"] == 0


def test_the_manuals_words_for_bindings_and_for_everything(operated: Operated) -> None:
    for number in range(4):
        operated.send(f"b{number}@partner.test")
    operated.waits(4)
    assert operated.say("rebind", "all", "--to", "second", "--yes") == "Rebound 4 messages.\n"
    assert (
        operated.say("binding", "flush", "domain", "default", "all") == "All domains flushed.  0 messages requeued.\n"
    )
    assert operated.say("binding", "flush", "domain", "second", "partner.test") == (
        "partner.test flushed.  4 messages requeued.\n"
    )
    operated.waits(4)
    assert "0 messages would be failed" in operated.say("binding", "fail", "domain", "default", "all", status=1)
    one = operated.result("find", "--all")["items"][0]["id"]
    assert operated.say("message", "discard", one) == "Message failed\n"
    said = operated.say("binding", "fail", "domain", "quiet", "second", "other.test", "--yes")
    assert said == "other.test purged, 0 messages failed.\n"
    assert operated.say("fail", "all", "quiet", "gone", "--yes") == "All domains purged, 3 messages failed.\n"
    assert operated.result("find", "--all")["total"] == 0


def test_mail_is_put_off(operated: Operated) -> None:
    operated.say("suspend", "partner.test")
    for number in range(4):
        operated.send(f"b{number}@partner.test")
    until(lambda: operated.result("find", "--all")["total"] == 4, "four messages")
    assert operated.result("delay", "2h", "--recipient", "b[01]@*", "--yes")["count"] == 2
    assert operated.result("summary")["active"] == 2
    assert operated.say("delay", "soon", "--all", "--yes", status=1).endswith("write 90, 15m, 2h or 3d\n")
    assert sorted(message["next_at"] > 0 for message in operated.result("find", "--all")["items"]) == [0, 0, 1, 1]


def test_a_domain_is_paused_with_a_reason_and_an_end_over_a_restart(operated: Operated) -> None:
    said = operated.say("suspend", "other.test", "--for", "1h", "--reason", "their certificate expires")
    who = getpass.getuser()
    assert f"domain other.test is suspended for 3600 s, by {who} since " in said
    operated.send("b@other.test")
    found = until(lambda: operated.result("find", "--domain", "other.test")["items"], "the message")
    why = operated.say("message", "why", found[0]["id"])
    assert f"why: suspended by {who}: their certificate expires, for 3" in why
    assert operated.server.stop() == 0
    operated.server.start()
    assert ": their certificate expires\n" in operated.say("suspended")
    assert operated.result("find", "--all")["total"] == 1
    assert not operated.other.messages
    assert operated.say("resume", "other.test") == "domain other.test is resumed\n"
    until(lambda: len(operated.other.messages) == 1, "the message")
    assert operated.say("suspended") == "nothing is suspended\n"
    assert operated.say("resume", "other.test", status=1).startswith("quillon console: nothing of this domain")
    assert operated.result("suspended") == []


def test_a_file_of_suspensions_that_is_broken_is_kept_and_told_of(operated: Operated) -> None:
    assert operated.server.stop() == 0
    spool = operated.server.folder / "spool"
    (spool / "suspended.json").write_text("[" * 100_000)
    operated.server.start()
    assert any("suspend: " in line for line in operated.server.log("paniclog.ec"))
    assert (spool / "suspended.broken").exists()
    operated.say("suspend", "other.test")
    assert "domain other.test is suspended" in operated.say("suspended")


def test_a_worker_that_was_not_there_hears_of_a_pause_all_the_same(operated: Operated) -> None:
    spool = operated.server.folder / "spool"
    now = time.time()
    one = Suspension("other.test", "", "by another worker", "root", now, now + 3600)
    change(spool, now, lambda found: found.add(one))
    until(lambda: len(operated.result("suspended")) == 1, "the pause")
    sent = 0
    while not operated.result("find", "--all")["total"]:  # one of two workers may not have heard of it yet
        operated.send("b@other.test")
        sent += 1
    change(spool, now, lambda found: found.remove("other.test", ""))
    until(lambda: len(operated.other.messages) == sent, "the message")


def test_a_pause_ends_by_itself(operated: Operated) -> None:
    operated.say("suspend", "--all", "--for", "2s")
    operated.send("b@other.test")
    until(lambda: len(operated.other.messages) == 1, "the message")
    assert operated.say("suspended") == "nothing is suspended\n"


def test_mail_is_moved_to_another_binding_and_follows_a_new_gateway(operated: Operated) -> None:
    for number in range(6):
        operated.send(f"b{number}@partner.test")
    operated.waits(6)
    assert operated.say("rebind", "default", "--to", "third", "--yes", status=1).startswith(
        "quillon console: there is no binding 'third'; there are default, second"
    )
    assert operated.say("rebind", "default", "partner.test", "--to", "second", "--yes") == "Rebound 6 messages.\n"
    queues = operated.result("mailq")["queues"]
    assert [(queue["binding"], queue["delayed"]) for queue in queues] == [("default/second", 6)]
    operated.server.configure(operated.text().replace(f":{operated.dead}", f":{operated.other.port}"), workers=2)
    assert operated.say("config", "reload").startswith("configuration reloaded")
    assert operated.say("rebind", "all", "--yes") == "Rebound 6 messages.\n"
    assert operated.say("flush", "domain", "all") == "All domains flushed.  6 messages requeued.\n"
    until(lambda: len(operated.other.messages) == 6, "all messages")
    assert {message.helo for message in operated.other.messages} == {"second.quillon.test"}


def test_a_queue_is_sent_to_the_hosts_of_another_domain(operated: Operated) -> None:
    for number in range(3):
        operated.send(f"b{number}@partner.test")
    operated.waits(3)
    assert "3 messages would be moved" in operated.say("reroute", "queue", "partner.test", "other.test", status=1)
    assert operated.say("reroute", "queue", "partner.test", "other.test", "--yes") == "3 messages moved.\n"
    assert operated.server.stop() == 0  # the spool knows where they go
    operated.server.start()
    until(lambda: operated.result("summary")["delayed"] == 3, "the messages")
    operated.say("flush", "--all", "--yes")
    until(lambda: len(operated.other.messages) == 3, "all messages")
    assert {str(message.recipients[0]) for message in operated.other.messages} == {
        f"b{n}@partner.test" for n in range(3)
    }


NOT_UNDERSTOOD: list[tuple[tuple[str, ...], str]] = [
    (("flush",), "say which messages: [--id ID] [--domain D]"),
    (("fail", "--all", "--domain", "x.test"), "--all means everything"),
    (("fail", "--domain"), "--domain wants a value"),
    (("fail", "--domain", "x.test", "--domain", "y.test"), "--domain stands twice"),
    (("discard", "--sendr", "x"), "--sendr is no option of this command"),
    (("discard", "x.test"), "say which messages"),
    (("flush", "--older", "yesterday"), "'yesterday' is no time"),
    (("message", "why", "12345"), "'12345' is no message id: one looks like 53/6B-18426-1AAEACF3"),
    (("message", "details", "53/6B-18426-1AAEACF3"), "no message of this id waits here or is being delivered"),
    (("message", "retry"), "write it so: message retry ID"),
    (("reroute", "queue", "a.test"), "say which messages"),
    (("binding", "fail", "domain", "second"), "binding fail domain [quiet] BINDING NAME"),
    (("binding", "flush", "domain", "second"), "binding flush domain BINDING NAME"),
    (("reroute", "queue", "a.test", "b..test"), "'b..test' is no domain and no address"),
    (("showqueue",), "showqueue [binding B] DOMAIN [limit,offset]"),
    (("suspend", "x.test", "--sender", "y"), "what is suspended is a domain, a binding, or --all"),
    (("suspend",), "say which messages"),
    (("suspend", "other.test "), "is no domain and no address"),
    (("find", "--all", "--limit", "many"), "many: a number is wanted"),
    (("find", "--all", "it's"), "not understood"),
    (("bogus",), "bogus: unknown command"),
]


def test_what_is_not_understood_changes_nothing(operated: Operated) -> None:
    console = ["--socket", f"{operated.folder}/console"]
    for words, problem in NOT_UNDERSTOOD:
        assert problem in operated.say(*words, status=1)
    lines = "".join(f"{shlex.join(words)}\n" for words, _ in NOT_UNDERSTOOD)
    done = subprocess.run(
        [sys.executable, "-m", "quillon", "console", *console, "--json"],
        input=lines, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    answers = [json.loads(line)["error"] for line in done.stdout.splitlines()]
    assert len(answers) == len(NOT_UNDERSTOOD)
    assert all(problem in answer for answer, (_, problem) in zip(answers, NOT_UNDERSTOOD, strict=True))


def test_a_long_answer_comes_whole(operated: Operated) -> None:
    operated.say("suspend", "--all")
    with smtplib.SMTP("127.0.0.1", operated.port, timeout=60) as client:
        for _ in range(40):
            client.sendmail("a@x.test", [f"{'b' * 40}{n}@partner.test" for n in range(100)], MESSAGE)
    found = operated.result("find", "--all", "--limit", "4000")
    assert (len(found["items"]), found["total"]) == (4000, 4000)


def test_connections_are_shown(operated: Operated) -> None:
    with smtplib.SMTP("127.0.0.1", operated.port, timeout=30) as client:
        client.ehlo("client.test")
        shown = operated.say("show", "inbound")
        assert f"127.0.0.1:{client.sock.getsockname()[1]} on 127.0.0.1:{operated.port} awaiting mail in clear" in shown  # type: ignore[union-attr]
    operated.send("b@other.test")
    until(lambda: operated.other.messages, "the message")
    (line,) = operated.result("show", "outbound")["items"]
    assert (line["peer"], line["state"], line["delivered"]) == (f"127.0.0.1 port {operated.other.port}", "idle", 1)


def test_commands_come_from_a_file(operated: Operated) -> None:
    command = [sys.executable, "-m", "quillon", "console", "--socket", f"{operated.folder}/console"]
    text = "# the morning's questions\nversion\n\nsuspended\nbogus\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("quillon ")
    assert done.stdout.endswith("nothing is suspended\n")
    assert "bogus: unknown command" in done.stderr


def test_roles_say_who_may_do_what(tmp_path: Path, server: Callable[..., Server]) -> None:
    who = getpass.getuser()
    groups = tmp_path / "groups"
    groups.write_text(f"# who may do what\nview:{who},carol\noperate:*:carol\n")
    port = free_port()
    running = server(
        f"""
        Control_Listener {{
          Enable_Authorization = true
          AuthorizationParameters = [ uri = "groups://{groups}" ]
          Listen "{tmp_path}/console" {{ }}
          Listen "{tmp_path}/admin" {{ Enable_Authorization = false }}
        }}
        ec_logger "acct" {{ mainlog = log/m rejectlog = log/r paniclog = log/p acctlog = log/acctlog.ec }}
        Authorization {{ Role "flusher" {{ Allow = ( "^flush domain " ) }} }}
        ESMTP_Listener {{ Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()

    def say(*words: str, name: str = "console") -> str:
        command = [sys.executable, "-m", "quillon", "console", "--socket", f"{tmp_path}/{name}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    denied = "quillon console: Not Authorized for this command\n"
    assert say("whoami") == f"{who}, with the roles {who}, view\n"
    assert say("mailq").startswith("Group/Binding")
    assert say("flush", "domain", "x.test") == denied
    assert say("control", "x") == say("config", "reload") == denied
    groups.write_text(f"operate:{who}\n")
    assert say("flush", "domain", "x.test") == "x.test flushed.  0 messages requeued.\n"
    assert say("config", "reload") == denied
    groups.write_text(f"flusher:{who}\n")
    assert say("flush", "domain", "x.test") == "x.test flushed.  0 messages requeued.\n"
    assert say("mailq") == say("flush", "--all") == denied
    groups.write_text("no line of a groups file\n")
    assert say("mailq").startswith(f"quillon console: Not Authorized for this command: {groups}: line 1: ")
    lines = [line.rstrip().split("@", 1)[1] for line in running.log("acctlog.ec")]
    at = f"Z@{tmp_path}/console@@{who}"
    assert lines[:3] == [f"{at}@1@whoami@view", f"{at}@1@mailq@view", f"{at}@0@flush domain x.test"]
    assert lines[5] == f"{at}@1@flush domain x.test@operate"
    assert lines[7] == f"{at}@1@flush domain x.test@flusher"
    assert lines[-1] == f"{at}@-1@mailq"
    assert say("config", "reload", name="admin") == "configuration reloaded\n"
    assert say("whoami", name="admin") == f"{who}, who may give every command here\n"
    running.configure(
        f"""Control_Listener {{ Listen "{tmp_path}/console" {{ }} Listen "{tmp_path}/admin" {{ }} }}
        ESMTP_Listener {{ Listen "127.0.0.1:{port}" {{ }} }}"""
    )
    assert say("config", "reload", name="admin") == "configuration reloaded\n"
    assert say("mailq").startswith("Group/Binding")


@pytest.mark.peer
def test_what_is_asked_of_dns_and_who_is_connected(tmp_path: Path, server: Callable[..., Server], capsys: Any) -> None:
    zones = Zones(tmp_path / "dns", "bank.test. 60 IN MX 5 mx.bank.test.\nmx.bank.test. 60 IN A 127.0.0.1\n")
    port = free_port()
    (tmp_path / "p.py").write_text("def validate_mailfrom(session):\n    pass\n")
    running = server(
        f"""DNS_Servers = ( "127.0.0.1:{zones.port}" ) Control_Listener {{ Listen "{tmp_path}/c" {{ }} }}
        policy "p" {{ module = "{tmp_path}/p.py" }} ESMTP_Listener {{ Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()

    def say(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["console", "-c", str(running.file), *words]) == status
        said = capsys.readouterr()
        return str(said.err if status else said.out)

    try:
        assert say("dns_cache", "submit", "Bank.Test", "mx") == "Submitted\n"
        until(lambda: "5 mx.bank.test" in say("dns_cache", "lookup", "bank.test", "MX"), "the answer")
        say("dns_cache", "submit", "bank.test", "MX")
        stats = "Entries: 1\nAnswered by the cache: 1 (50 %)\nAsked: MX 1\nPending: 0\n"
        until(lambda: say("dns_cache", "stats") == stats, "what was asked")
        summary = say("summary")
        assert "        DNS A Queries: 0\n        DNS MX Queries: 1\n        Pending DNS Queries: 0\n" in summary
        assert 'quillon_dns_queries_total{kind="MX"} 1\n' in say("metrics")
        say("summary", "reset")
        assert "DNS MX Queries: 0\n" in say("summary")
        assert "dns_cache submit NAME TYPE" in say("dns_cache", "submit", "bank.test", "ANY", status=1)
        with smtplib.SMTP("127.0.0.1", port, timeout=30):
            assert say("count", "SMTP", "127.0.0.0/8") == "1 sessions\n"
            assert say("count", "smtp", "192.0.2.1") == "0 sessions\n"
        for words in (("HTTP", "127.0.0.1"), ("SMTP", "mx.test"), ("SMTP",)):
            say("count", *words, status=1)
        assert say("module", "list") == "Module: p\n    validate_mailfrom\n"
    finally:
        zones.stop()
