"""What the console shows and changes of a running server beside its mail: the configuration, counters of scripts, and a
message whole."""

from __future__ import annotations

import json
import os
import re
import smtplib
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quillon.reception.from_files import letter
from tests.support.clients import MESSAGE, ask_console
from tests.support.server import Server, free_port, until

COUNTING = """
require("msys.counter")
local mod = {}
function mod:validate_data(msg, ac, vctx)
  msys.counter.inc("/site/messages")
  return msys.core.VALIDATE_CONT
end
msys.registerModule("counting", mod)
"""


class Running:
    """Two workers with a console."""

    def __init__(self, folder: Path, make: Callable[..., Server]) -> None:
        self.port = free_port()
        self.socket = folder / "console"
        (folder / "counting.lua").write_text(COUNTING)
        self.server = make(self.text(folder), workers=2).start()

    def text(self, folder: Path, more: str = "") -> str:
        return f"""
        Suspend_Delivery = true
        outbound_smtp_auth_pass = "hush"
        Domain "bank.fi" {{ TLS = required }}
        Control_Listener {{ Listen "{self.socket}" {{ File_Mode = 0600 }} }}
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{self.port}" {{ }} }}
        scriptlet "scriptlet" {{ script "counting" {{ source = {folder}/counting.lua }} }}
        {more}"""

    def ask(self, command: str) -> str:
        return ask_console(self.socket, command)

    def told(self, command: str) -> Any:
        return json.loads(self.ask(f"json {command}"))["result"]

    def send(self, octets: str = MESSAGE) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.sendmail("a@example.test", ["b@partner.test"], octets)


@pytest.fixture
def running(tmp_path: Path, server: Callable[..., Server]) -> Running:
    return Running(tmp_path, server)


def test_an_option_is_shown_set_and_unset(running: Running) -> None:
    assert running.ask("config get domain bank.fi tls").startswith("tls = required    ")
    assert running.ask("config get blackhole") == "error: Option 'blackhole' is not set in scope ''.\n"
    assert running.ask("config eval blackhole") == "blackhole = false    default\n"
    assert running.ask("config show domain bank.fi") == "tls = required\n"
    assert "Domain bank.fi { ... }\n" in running.ask("config show")
    whole = running.ask("config showrecurse")
    assert "Domain bank.fi {\n  tls = required\n}\n" in whole
    assert "hush" not in whole + running.ask("config eval outbound_smtp_auth_pass")
    assert running.ask("config changes") == "the console has changed nothing since the last reload\n"

    said = running.ask("config set domain bank.fi connect_timeout 5 retry_interval = 60")
    assert said == "it holds until the next reload\n"
    row = running.told("config eval domain bank.fi connect_timeout")
    assert row["value"] == "5"
    assert re.fullmatch(r"console \(root, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, change 1\)", row["set_at"]), row
    assert running.told("config explain bank.fi retry_interval")["options"][-1]["value"] == "60"
    assert running.ask("config unset domain bank.fi retry_interval") == "it holds until the next reload\n"
    assert "retry_interval" not in running.ask("config show domain bank.fi")
    told = running.told("config changes")
    changes = told["changes"]
    assert told["workers_without"] == []
    assert [(row["do"], row["words"]) for row in changes] == [
        ("set", "domain bank.fi connect_timeout 5 retry_interval = 60"),
        ("unset", "domain bank.fi retry_interval"),
    ]
    until(
        lambda: any("console: root: config set domain bank.fi connect_timeout 5" in line for line in _notices(running)),
        "who it was is logged",
    )
    # a worker that is started anew has it too
    os.kill(running.server.workers()[0], 9)
    until(lambda: len(_of_all(running, "config eval domain bank.fi connect_timeout")) == 1, "a new worker")
    assert running.told("config eval domain bank.fi connect_timeout")["value"] == "5"

    assert running.ask("config reload") == "configuration reloaded\n2 changes of the console are gone\n"
    assert running.told("config changes")["changes"] == []
    assert running.told("config eval domain bank.fi connect_timeout")["set_at"] is None


def _of_all(running: Running, command: str) -> list[str]:
    answer = json.loads(running.ask(f"json {command}"))
    return [] if "incomplete" in answer or len(running.server.workers()) < 2 else [str(answer["result"])]


def _notices(running: Running) -> list[str]:
    return [line for line in running.server.log("events.json") if "console: " in line]


def test_what_cannot_be_honoured_is_refused_and_nothing_changes(running: Running) -> None:
    for words, why in (
        ("domain bank.fi tls perhaps", "tls = 'perhaps': it is one of no, ifavailable, required"),
        ("domian bank.fi tls no", "did you mean domain"),
        ("tls_certificate /nowhere.pem", "/nowhere.pem"),
        ("tls_engine gnutls", "tls_engine has changed, which needs a restart"),
        ("outbound_smtp_auth_pass = lost", "is secret: write it into the file"),
        ("esmtp_listener listen 192.0.2.1:2525 enable true", "192.0.2.1"),
    ):
        said = running.ask(f"config set {words}")
        assert said.startswith("error: "), said
        assert why in said, said
    assert running.told("config changes")["changes"] == []
    assert not any("lost" in line for line in running.server.log("events.json"))


def test_files_that_are_being_edited_are_not_put_to_use_by_a_change(running: Running) -> None:
    running.server.configure(running.text(running.socket.parent, "Retry_Interval = 77"), workers=2)
    said = running.ask("config set connect_timeout 9")
    assert "its files have changed since they were read: reload first" in said
    assert running.told("config eval retry_interval")["value"] != "77"
    assert running.ask("config reload") == "configuration reloaded\n"
    assert running.ask("config set connect_timeout 9") == "it holds until the next reload\n"
    assert running.told("config eval retry_interval")["value"] == "77"


def test_counters_of_scripts(running: Running) -> None:
    for _ in range(6):
        running.send()
    [row] = running.told("counter list")
    assert (row["counter"], row["value"]) == ("/site/messages", 6)
    assert re.search(r"^6 +\d{4}-\d\d-\d\d@\d\d:\d\d:\d\d +strict +/site/messages$", running.ask("counter list"), re.M)
    assert running.ask("counter list").endswith("1 counters listed.\n")
    assert running.told("counter add /site/messages 4")[0]["value"] == 10
    assert running.told("counter increment /site/messages")[0]["value"] == 11
    assert running.told("counter increment /site/other")[0]["value"] == 1
    assert [row["counter"] for row in running.told("counter list /site/o")] == ["/site/other"]
    assert running.told("counter reset /site/messages")[0]["value"] == 0
    assert running.ask("counter unlink /site/other") == "/site/other is forgotten\n"
    assert running.ask("counter unlink /site/other") == "there is no such counter\n"
    assert "is no path of a counter" in running.ask("counter add nope 1")
    assert "counter add PATH NUMBER" in running.ask("counter add /x much")


def test_a_message_comes_out_whole(running: Running, tmp_path: Path) -> None:
    body = "Subject: all of it\r\n\r\n" + "".join(f"line {n} \x01 ä\r\n" for n in range(9000))
    with smtplib.SMTP("127.0.0.1", running.port, timeout=30) as client:
        client.sendmail("a@example.test", ["b@partner.test"], body.encode())
    number = running.told("find --all")["items"][0]["id"]
    command = [sys.executable, "-m", "quillon", "console", "--socket", str(running.socket), "message", "export"]
    file = tmp_path / "it.eml"
    said = subprocess.run([*command, number, str(file)], capture_output=True, text=True, check=True)
    assert said.stdout == f"{file.stat().st_size} octets written to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = letter(file.read_bytes(), "it", None, None)
    assert file.read_bytes().endswith(body.encode())
    assert (str(found.sender), str(found.recipient)) == ("a@example.test", "b@partner.test")
    out = subprocess.run([*command, number], capture_output=True, check=True)
    assert out.stdout == file.read_bytes()
    again = subprocess.run([*command, number, str(file)], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (1, f"quillon console: {file}: File exists\n")
    gone = subprocess.run([*command, "53/6B-18426-1AAEACF3"], capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert "no message of this id waits here" in gone.stderr


def test_changes_end_where_workers_cannot_be_told_of_them(running: Running) -> None:
    said = ""
    for number in range(40):
        said = running.ask(f"config set domain d{number}.test exclude_vctx_conn {'x' * 3000}")
        if "it holds" not in said:
            break
    assert "too much to be told to workers" in said
    assert 5 < len(running.told("config changes")["changes"]) < 40
    assert running.told("config eval domain d1.test exclude_vctx_conn")["value"].startswith("xxx")


def test_a_warning_and_a_new_scope_are_told(running: Running) -> None:
    said = running.ask("config set domain bnak.fi tls required")
    assert said == "it holds until the next reload\nthere was no Domain bnak.fi: it is new\n"
    said = running.ask("config set force_fsync false")
    assert "every message is synced before it is acknowledged" in said
    assert running.ask("config set connect_timeout 8") == "it holds until the next reload\n"


def test_what_is_in_force_is_not_called_refused(running: Running) -> None:
    """A worker that ends meanwhile is started anew with it."""
    (running.server.folder / "slow.py").write_text(
        "import time\ntime.sleep(1.5)\ndef validate_data(msg, session):\n    pass\n"
    )
    running.server.configure(running.text(running.socket.parent, 'policy "slow" { module = slow.py }'), workers=2)
    assert running.ask("config reload") == "configuration reloaded\n"
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(running.ask("config set connect_timeout 8")))
    asking.start()
    time.sleep(2.2)  # it is tried out, and workers load it
    os.kill(running.server.workers()[0], 9)
    asking.join()
    assert answers[0].startswith("error: it is in force, but not everywhere: worker "), answers
    assert "is started anew with it" in answers[0]
    until(lambda: len(_of_all(running, "config changes")) == 1, "a new worker", 30)
    assert [row["words"] for row in running.told("config changes")["changes"]] == ["connect_timeout 8"]


def test_a_sighup_tells_how_many_changes_are_gone(running: Running) -> None:
    assert running.ask("config set connect_timeout 8") == "it holds until the next reload\n"
    running.server.reload()
    until(lambda: "1 changes of the console are gone" in running.server.said(), "it is told")
    assert running.told("config changes")["changes"] == []


def test_what_no_answer_can_repeat_is_no_command(running: Running) -> None:
    said = running.ask("config set outbound_smtp_auth_user a\0b")
    assert "such characters are written into the file" in said
    assert running.ask("counter add /x --5").startswith("error: counter add PATH NUMBER")
    assert running.ask(f"counter add /x {'9' * 18}").count("listed")
    assert "63 bits" in "".join(running.ask(f"counter add /x {'9' * 18}") for _ in range(6))
    running.send()
