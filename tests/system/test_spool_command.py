"""`quillon spool`: a spool looked into beside a running server, and without one."""

import email
import errno
import json
import re
import smtplib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quillon.cli.main import main
from quillon.mail.message import Message
from tests.support.clients import MESSAGE
from tests.support.compiled import pure_only
from tests.support.server import Server, free_port, until
from tests.unit.spool.test_store import _batch, _insert, _store, _use


@pytest.fixture
def running(server: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> Server:
    port = free_port()
    made = server(
        f"""Suspend_Delivery = true Large_Message_Threshold = 2000
        ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}"""
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("alice@x.test", ["bob@y.test", "carol@z.test"], MESSAGE)
        client.sendmail("eve@x.test", ["bob@y.test"], MESSAGE + "x\r\n" * 5000)
    made.wait_events("reception", 3)
    capsys.readouterr()
    return made


def _said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["spool", *words]) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("live", [True, False])
def test_ls_and_show(running: Server, capsys: pytest.CaptureFixture[str], live: bool) -> None:
    if not live:
        running.stop()
    config = ("-c", str(running.file))
    rows = [json.loads(line) for line in _said(capsys, "ls", "--json", *config).splitlines()]
    assert [row["recipient"] for row in rows] == ["bob@y.test", "carol@z.test", "bob@y.test"]
    assert len({row["batch_id"] for row in rows}) == 2
    assert len(_said(capsys, "ls", "--recipient", "BOB", *config).splitlines()) == 2
    assert len(_said(capsys, "ls", "--sender", "eve", "--domain", "y.test", *config).splitlines()) == 1
    assert len(_said(capsys, "ls", "--limit", "1", *config).splitlines()) == 1
    text = _said(capsys, "show", rows[1]["id"], *config)
    assert "recipient: carol@z.test" in text
    assert "tls_demanded: TLS = no, TLS_Verify = no" in text
    assert "Subject: hello" in text
    assert main(["spool", "show", "00/00-00000-00000000", *config]) == 1


def test_export_writes_what_would_be_sent(running: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ("-c", str(running.file))
    assert _said(capsys, "export", str(tmp_path / "out"), *config).startswith("3 messages written")
    files = sorted((tmp_path / "out").glob("*.eml"))
    assert len(files) == 3
    parsed = [email.message_from_bytes(file.read_bytes()) for file in files]
    assert sorted(str(message["X-Envelope-To"]) for message in parsed) == [
        "<bob@y.test>",
        "<bob@y.test>",
        "<carol@z.test>",
    ]
    assert {str(message["Return-Path"]) for message in parsed} == {"<alice@x.test>", "<eve@x.test>"}
    assert max(len(file.read_bytes()) for file in files) > 15000
    _said(capsys, "export", "--maildir", "--sender", "eve", str(tmp_path / "box"), *config)
    assert len(list((tmp_path / "box/new").iterdir())) == 1


def test_check_names_what_is_broken(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    spool = running.folder / "spool"
    assert _said(capsys, "check", "--spool", str(spool)) == f"nothing is wrong in {spool}\n"
    running.stop()
    (segment,) = (spool / "worker-0/log").glob("*.log")
    octets = segment.read_bytes()
    segment.write_bytes(octets.replace(b"Subject: hello", b"Subject: help!", 1))
    with sqlite3.connect(spool / "worker-0/spool.db") as database:
        database.execute("INSERT INTO batch VALUES(1, '[1]', 'x', '')")
        database.execute("INSERT INTO message VALUES(2, 1, '[9]')")
    database.close()
    (body,) = (spool / "worker-0/bodies").iterdir()
    body.rename(body.with_name("77"))
    text = _said(capsys, "check", "--spool", str(spool), status=1)
    assert "malformed batch record" in text
    assert re.search(r"00000001.log: octets 24 to \d+ are no record", text)
    assert f"its body {body.name} is missing" in text
    assert "77: no message has this body" in text
    assert main(["spool", "check", "--spool", str(running.folder)]) == 1


def test_what_was_exported_comes_back_by_import(
    running: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = ("-c", str(running.file))
    before = {(str(m.batch.sender), str(m.recipient)): body for m, body in running.spooled()}
    for form in ([], ["--maildir"]):
        _said(capsys, "export", *form, str(tmp_path / f"out{len(form)}"), *config)
    running.stop()
    text = running.file.read_text()
    for number, folder in enumerate((tmp_path / "out0", tmp_path / "out1")):
        for old in (running.folder / "spool").glob("worker-*"):
            old.rename(tmp_path / f"{old.name}-{number}")
        running.file.write_text(text.replace("Suspend_Delivery", 'Gateway = "next.test" Suspend_Delivery'))
        said = _said(capsys, "import", str(folder), *config)
        assert said.startswith("3 messages written to ")
        running.start()
        until(lambda: len(running.spooled()) == 3, "mail")
        assert not list(running.folder.glob("spool/worker-1000/log/*.log"))
        assert {(str(m.batch.sender), str(m.recipient)): body for m, body in running.spooled()} == before
        assert {m.destination for m, _ in running.spooled()} == {"next.test"}
        running.stop()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"Subject: x\r\n\r\nhi\r\n", [], "give --sender and --recipient"),
        (b"Subject: x\n\nhi\n", ["--sender", "a@x.test", "--recipient", "nobody"], "has no domain"),
        (b"Subject: x\n\nhi\n", ["--sender", "a b", "--recipient", "b@y.test"], "is no address"),
        (b"", ["--sender", "<>", "--recipient", "b@y.test"], "no message in it"),
        (b"a\0b", ["--sender", "<>", "--recipient", "b@y.test"], "octets of value 0"),
    ],
)
def test_files_that_cannot_be_imported(
    running: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, options: list[str], words: str
) -> None:
    (tmp_path / "one.eml").write_bytes(content)
    assert main(["spool", "import", "-c", str(running.file), str(tmp_path / "one.eml"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not (running.folder / "spool/worker-1000").exists()


def test_repair_copies_what_can_be_read_and_takes_back_what_was_set_aside(
    running: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "worker-0"
    some = [_batch(body=b"x" * 9000) for _ in range(200)]

    async def put(_: list[Message]) -> None:
        for batch, messages in some:
            assert await _insert(store, batch, messages) is None
            store.update(messages[0])

    store, _ = _store(folder)
    _use(store, put)
    file = folder / "spool.db"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute(
            "INSERT INTO set_aside SELECT id, 'message', batch, record, 'layout 9', 'now' FROM message ORDER BY id LIMIT 1"
        )
        database.execute("DELETE FROM message WHERE id = (SELECT min(id) FROM message)")
    database.close()
    assert "was set aside, waits again" in _said(capsys, "repair", "--spool", str(tmp_path))
    octets = bytearray(file.read_bytes())
    middle = len(octets) // 2 // 16384 * 16384
    octets[middle : middle + 32768] = b"\xff" * 32768
    file.write_bytes(octets)
    assert _said(capsys, "check", "--spool", str(tmp_path), status=1)
    said = _said(capsys, "repair", "--spool", str(tmp_path))
    assert "messages were copied into a new database" in said
    assert (folder / "spool.db.damaged-1").read_bytes() == octets
    assert _said(capsys, "repair", "--spool", str(tmp_path)) == f"there is nothing to repair in {tmp_path}\n"
    store, _ = _store(folder)
    assert 150 < len(_use(store)) <= 200
    assert main(["spool", "repair", "--spool", str(running.folder / "spool")]) == 1
    assert "in use by another process" in capsys.readouterr().err


@pure_only
def test_an_import_that_cannot_be_written_takes_nothing(
    running: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.eml").write_bytes(b"Subject: x\n\nhi\n")
    monkeypatch.setattr("quillon.spool.segment.Segment.append", _full)
    envelope = ("--sender", "a@x.test", "--recipient", "b@y.test")
    assert main(["spool", "import", "-c", str(running.file), str(tmp_path), *envelope]) == 1
    assert "nothing was taken" in capsys.readouterr().err
    assert sorted(file.name for file in (running.folder / "spool").iterdir()) == ["worker-0"]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_taken_over_keeps_no_server_from_starting(running: Server) -> None:
    running.stop()
    other = running.folder / "spool/worker-1000"
    (other / "bodies").mkdir(parents=True)
    (other / "bodies/1").write_bytes(b"x")
    running.start()
    assert any("its mail was not taken over" in line for line in running.log("paniclog.ec"))
    assert len(running.spooled()) == 3


def test_repair_hides_no_database_that_has_gone(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    running.stop()
    file = running.folder / "spool/worker-0/spool.db"
    file.write_bytes(b"")
    assert main(["spool", "repair", "--spool", str(running.folder / "spool")]) == 1
    assert "is missing, or empty, and was there before" in capsys.readouterr().err
    assert file.read_bytes() == b""


def test_mail_moves_to_a_machine_that_has_never_run(tmp_path: Path, server: Callable[..., Server]) -> None:
    """As docs/keeping.md has it."""
    port = free_port()
    old = server(
        f"""ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }} Suspend_Delivery = true""",
        workers=2,
    ).start()
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for number in range(10):
            client.sendmail("a@x.test", [f"b{number}@y.test", "c@y.test"], MESSAGE)
    assert old.stop() == 0
    new = tmp_path / "new.conf"
    new.write_text(f'SpoolBase = "{tmp_path}/new/spool"\nSuspend_Delivery = true\n')

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "quillon", *words], capture_output=True, text=True, check=True)
        return done.stdout

    assert run("spool", "export", "-c", str(old.file), str(tmp_path / "mail")).startswith("20 messages written")
    assert run("spool", "import", "-c", str(new), str(tmp_path / "mail")).startswith("20 messages written")
    assert run("spool", "ls", "-c", str(new)).count("@y.test") == 20
