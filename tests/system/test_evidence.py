"""Evidence: what a running server writes down can be shown to others, and no change of it stays unseen."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import smtplib
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quillon.cli.main import main
from quillon.evidence import proof, tree
from quillon.evidence.files import LogFiles
from quillon.lab.sink import inbound_tls
from quillon.mail.reply import Reply
from quillon.smtp.events import Data
from tests.support.peers import require, require_root
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.support.unbound import port_on

CONFIG = """
evidence {{ node = mx1.quillon.test checkpoint_interval = 1 }}
Retry_Interval = 1 Max_Retry_Interval = 1 Host_Failure_Retry = 1
ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{port}" {{ }} }}
Domain "held.test" {{ Routes = ( "127.0.0.1:{clear}" ) TLS = required }}
Domain "clear.test" {{ Routes = ( "127.0.0.1:{clear}" ) }}
"""
GOOD = """
Domain "good.test" {{ Routes = ( "127.0.0.1:{good}" ) TLS = required TLS_Verify = host TLS_CA = "{pki}/ca.pem" }}
"""


def send(port: int, *recipients: str, message_id: str = "") -> None:
    head = f"Message-ID: <{message_id}>\r\n" if message_id else ""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for recipient in recipients:
            client.sendmail("a@sender.test", [recipient], f"{head}Subject: evidence\r\n\r\nhello\r\n")


def rows(server: Server) -> list[dict[str, Any]]:
    """All records of the log that are there."""
    found = []
    for log in proof.logs(server.folder / "spool/evidence"):
        files = LogFiles(log)
        found += [json.loads(octets) for _, octets in files.records()]
        files.close()
    return found


@pytest.fixture
def proven(server: Callable[..., Server], pki: Path) -> Any:
    """A server that has delivered over TLS and in clear, and holds a message."""
    tls = inbound_tls(f"{pki}/server.pem", f"{pki}/server.key")
    with SinkThread(tls=tls) as good, SinkThread() as clear:
        port = free_port()
        running = server(CONFIG.format(port=port, clear=clear.port) + GOOD.format(good=good.port, pki=pki)).start()
        recipients = [f"Someone@{name}.test" for name in ("good", "clear", "held")]
        for recipient in recipients:
            send(port, recipient, message_id=f"{recipient.partition('@')[2]}-1@sender.test")
        running.wait_attempts(*recipients)
        running.stop()
        yield running


def prove(server: Server, *words: str) -> int:
    return main([*words[:1], "-c", str(server.file), *words[1:]])


def unpacked(server: Server, name: str, *more: str) -> Path:
    """A proof that was made, unpacked."""
    file = server.folder / "proof.zip"
    assert prove(server, "prove", name, "-o", str(file), *more) == 0
    folder = server.folder / "proof"
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        archive.extractall(folder)
    return folder


def verified(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """What the verifier says, which has nothing of Quillon at hand."""
    require("openssl")
    command = [sys.executable, "-I", "-S", "verify.py", ".", str(key)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def public_key(server: Server, capsys: Any) -> Path:
    capsys.readouterr()
    assert prove(server, "proof", "key") == 0
    file = server.folder / "public.pem"
    file.write_text(capsys.readouterr().out.partition("mx1.quillon.test/")[0])
    return file


@pytest.mark.peer
def test_what_was_done_can_be_shown_to_others(proven: Server, capsys: Any) -> None:
    key = public_key(proven, capsys)
    folder = unpacked(proven, "good.test-1@sender.test", "--recipient", "someone@good.test")
    done = verified(folder, key)
    assert done.returncode == 0, done.stderr
    assert "0001.json: record 0 of " in done.stdout
    assert " attempt delivered" in done.stdout
    assert done.stdout.count("for someone@good.test") == 2
    taken, attempt = (json.loads((folder / f"{n:04}.json").read_bytes()) for n in (1, 2))
    assert (taken["kind"], taken["message_id"], taken["to"]) == ("reception", "<good.test-1@sender.test>", "good.test")
    assert attempt["demand"]["at"][0].startswith(f"{proven.file}:")
    assert (attempt["demand"]["tls"], attempt["demand"]["verify"], attempt["clear"]) == ("required", "host", 0)
    assert (attempt["tls"]["level"], attempt["tls"]["verified"]) == ("host", True)
    assert (folder / "certificates" / f"{attempt['tls']['certificates'][0]}.der").exists()
    assert "omeone" not in (folder / "0002.json").read_text(), "no person is named"


@pytest.mark.peer
def test_what_was_not_done_and_what_was_done_in_clear_stand_there_as_well(proven: Server, capsys: Any) -> None:
    assert prove(proven, "prove", "held.test-1@sender.test", "--json") == 0
    _, attempt, *_ = json.loads(capsys.readouterr().out)
    assert (attempt["outcome"], attempt["cause"], attempt["clear"]) == ("transient", "no_starttls", 0)
    assert prove(proven, "prove", "clear.test-1@sender.test") == 0
    assert (
        "delivered to clear.test by 127.0.0.1 [127.0.0.1] under TLS = no, TLS_Verify = no, in clear"
        in capsys.readouterr().out
    )
    assert prove(proven, "proof", "audit") == 0
    said = capsys.readouterr().out
    assert "attempt under TLS = required, TLS_Verify = host: delivered, over TLS, level host" in said
    clear = next(row for row in rows(proven) if row["kind"] == "attempt" and row["to"] == "clear.test")
    assert f"{clear['clear']} octets of messages sent in clear" in said
    assert {row["kind"] for row in rows(proven)} == {"reception", "attempt", "host"}


@pytest.mark.peer
def test_a_recipient_can_be_forgotten_and_the_proof_stays(proven: Server, capsys: Any) -> None:
    key = public_key(proven, capsys)
    (attempt,) = [row for row in rows(proven) if row["kind"] == "attempt" and row["to"] == "good.test"]
    assert prove(proven, "proof", "erase", attempt["id"]) == 0
    assert "2 of 2 records" in capsys.readouterr().out
    assert prove(proven, "prove", attempt["id"], "--recipient", "someone@good.test") == 1
    folder = unpacked(proven, attempt["id"])
    assert not list(folder.glob("*.recipient"))
    assert verified(folder, key).returncode == 0
    assert prove(proven, "proof", "audit") == 0


def octets(record: bytes) -> bytes:
    return struct.pack(">II", len(record), zlib.crc32(record)) + record


def tampered(log: Path, how: str) -> None:
    """Change a log as somebody would who can write all its files, but has not the key."""
    files = LogFiles(log)
    records = [record for _, record in files.records()]
    files.close()
    if how == "changed":
        records[1] = records[1].replace(b'"node":"mx1.', b'"node":"mx2.')
    elif how == "dropped":
        del records[1]
    elif how == "reordered":
        records[1], records[2] = records[2], records[1]
    elif how == "cut":
        del records[-2:]
    for name in ("places", *(f"level-{n}" for n in range(4))):
        (log / name).unlink()
    (log / "entries").write_bytes(b"".join(map(octets, records)))
    LogFiles(log, append=True).close()  # makes places and hashes anew, as if nothing were wrong


@pytest.mark.peer
@pytest.mark.parametrize("how", ["changed", "dropped", "reordered", "cut"])
def test_no_change_stays_unseen(proven: Server, capsys: Any, how: str) -> None:
    log = proven.folder / "spool/evidence/worker-0"
    before = rows(proven)
    tampered(log, how)
    assert rows(proven) != before
    assert prove(proven, "proof", "audit") == 3
    assert "BROKEN: " in capsys.readouterr().out
    assert prove(proven, "prove", "good.test-1@sender.test", "-o", str(proven.folder / "x.zip")) == 1
    assert "the log is not the one" in (said := capsys.readouterr().err) or "missing" in said or "not among" in said


@pytest.mark.peer
def test_the_verifier_is_not_fooled(proven: Server, tmp_path: Path, capsys: Any) -> None:
    key = public_key(proven, capsys)
    folder = unpacked(proven, "clear.test-1@sender.test", "--recipient", "someone@clear.test")
    assert verified(folder, key).returncode == 0
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k"], check=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "k", "-pubout", "-out", other], check=True)
    assert "NOT PROVEN: the log is not signed by this key" in verified(folder, other).stderr
    for name, old, new in (
        ("0002.json", '"clear":', '"clear":0'),
        ("0002.proof", "\nindex ", "\nindex 1"),
        ("0002.proof", "time ", "time 9"),
        ("0002.recipient", "someone", "sometwo"),
    ):
        copy = tmp_path / f"copy-{random.randrange(10**9)}"
        shutil.copytree(folder, copy)
        text = (copy / name).read_text(encoding="utf-8")
        assert old in text
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")
        done = verified(copy, key)
        assert done.returncode == 1, (name, done.stdout)
        assert "NOT PROVEN" in done.stderr


def test_no_outcome_without_its_record_whenever_it_is_killed(server: Callable[..., Server]) -> None:
    with SinkThread() as sink:
        port = free_port()
        running = server(CONFIG.format(port=port, clear=sink.port)).start()
        chance = random.Random(7)
        sent = 0
        for _ in range(8):
            end = time.monotonic() + chance.uniform(0.1, 0.6)
            while time.monotonic() < end:
                send(port, f"r{sent}@clear.test", message_id=f"{sent}@kill.test")
                sent += 1
            running.kill()
            known = rows(running)
            delivered = {row["batch"] for row in known if row["kind"] == "attempt" and row["outcome"] == "delivered"}
            taken = {row["message_id"]: row["batch"] for row in known if row["kind"] == "reception"}
            waiting = {str(message.batch.id) for message, _ in running.spooled()}
            for number in range(sent):
                batch = taken.get(f"<{number}@kill.test>")
                assert batch is not None, f"message {number} was acknowledged without a record"
                assert batch in delivered or batch in waiting, f"message {number} left the spool without a record"
            running.start()
        running.stop()
        assert sent > 20
        assert main(["proof", "audit", "-c", str(running.file)]) == 0


@pytest.mark.peer
def test_a_disk_that_takes_no_evidence_takes_no_mail_and_lets_none_leave(
    server: Callable[..., Server], tmp_path: Path, capsys: Any
) -> None:
    require_root()  # for a small disk
    with SinkThread() as sink:
        port = free_port()
        config = CONFIG.format(port=port, clear=sink.port)
        config += f'Control_Listener {{ Listen "{tmp_path}/c" {{ }} }}'
        running = server(config + 'Domain "later.test" { Routes = ( "127.0.0.1:1" ) }')
        folder = running.folder / "spool/evidence"
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
        try:
            running.start()
            send(port, "b@clear.test", "b@later.test")
            running.wait_attempts("b@clear.test")
            filler = folder / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
            refusals: list[tuple[int, bytes | str]] = []
            while len(refusals) < 5:  # what is left of the last page may take a record still
                try:
                    send(port, "c@later.test")
                    refusals.clear()
                except smtplib.SMTPDataError as refused:
                    refusals.append((refused.smtp_code, refused.smtp_error))
            assert {code for code, _ in refusals} == {451}
            assert all("no evidence can be written" in str(text) for _, text in refusals)
            capsys.readouterr()
            assert main(["console", "-c", str(running.file), "discard", "domain", "later.test", "--yes"]) == 1
            assert "no message is given up while that cannot be written down" in capsys.readouterr().err
            running.configure(config + f'Domain "later.test" {{ Routes = ( "127.0.0.1:{sink.port}" ) }}')
            taken = len(sink.messages)
            running.reload()
            with pytest.raises(AssertionError):
                until(lambda: len(sink.messages) > taken, "a message leaves", patience=3)
            filler.unlink()
            until(lambda: len(sink.messages) > taken, "it leaves once there is room")
            send(port, "d@clear.test")
            running.wait_attempts("d@clear.test")
            running.stop()
            assert main(["proof", "audit", "-c", str(running.file)]) == 0
        finally:
            running.stop()
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_log_that_was_taken_away_is_missed(server: Callable[..., Server], capsys: Any) -> None:
    running = server(CONFIG.format(port=free_port(), clear=1), workers=2).start()
    running.stop()
    folder = running.folder / "spool/evidence"
    assert prove(running, "proof", "audit") == 0
    os.rename(folder / "worker-1", running.folder / "worker-1")
    capsys.readouterr()
    assert prove(running, "proof", "audit") == 3
    assert "BROKEN: worker-1 is gone" in capsys.readouterr().out
    os.rename(running.folder / "worker-1", folder / "worker-1")
    known = (folder / "logs").read_text()
    (folder / "logs").write_text(known.replace("worker-1\n", ""))
    assert prove(running, "proof", "audit") == 3
    assert "is not signed by this key" in capsys.readouterr().out
    os.unlink(folder / "logs")
    assert prove(running, "proof", "audit") == 3
    assert "there is no list" in capsys.readouterr().out
    running.start()
    running.stop()
    assert (folder / "logs").read_text().split("\n\n")[0] == known.split("\n\n")[0]
    assert prove(running, "proof", "audit") == 0


def test_what_the_spool_did_not_take_is_recorded_as_undone(server: Callable[..., Server]) -> None:
    require_root()  # for a small disk
    port = free_port()
    running = server(
        "Spool_Minimum_Free_Space = 0 Spool_Minimum_Free_Inodes = 0 Suspend_Delivery = true\n"
        + CONFIG.format(port=port, clear=1)
    )
    folder = running.folder / "spool/worker-0"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    taken, codes = 0, list[int]()
    try:
        running.start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            while len(codes) < 3:
                try:
                    client.sendmail("a@sender.test", ["b@clear.test"], f"Subject: x\r\n\r\n{'x' * 900}\r\n" * 100)
                    taken += 1
                except smtplib.SMTPDataError as error:
                    codes.append(error.smtp_code)
        running.stop()
        kinds = {kind: {row["id"] for row in rows(running) if row["kind"] == kind} for kind in ("reception", "undone")}
        assert taken > 1
        assert set(codes) <= {451, 452}
        assert len(kinds["reception"]) == taken + len(codes)
        assert len(kinds["undone"]) == len(codes)
        assert kinds["undone"] < kinds["reception"]
        assert prove(running, "prove", next(iter(kinds["undone"]))) == 0
        assert main(["proof", "audit", "-c", str(running.file)]) == 0
    finally:
        running.stop()
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("mode", "text", "words"),
    [
        (0o644, "", "others than its owner can use it: chmod 600"),
        (0o600, "no key", "key.pem: "),
    ],
)
def test_a_key_that_cannot_be_used_is_told_at_the_start(
    server: Callable[..., Server], capsys: Any, mode: int, text: str, words: str
) -> None:
    running = server(CONFIG.format(port=free_port(), clear=1))
    file = running.folder / "spool/evidence/key.pem"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.chmod(mode)
    assert main(["check", "-c", str(running.file)]) != 0
    assert words in "".join(capsys.readouterr())
    with pytest.raises(AssertionError, match=words):
        running.start()


@pytest.mark.peer
def test_posture_and_dry_run_tell_what_was_and_what_would_have_been(proven: Server, capsys: Any) -> None:
    capsys.readouterr()
    assert prove(proven, "posture", "good.test") == 0
    said = capsys.readouterr().out
    assert "127.0.0.1: 1 attempts; TLSv1.3 1; " in said
    assert "level host 1" in said
    assert prove(proven, "posture", "held.test", "--json") == 0
    (day,) = json.loads(capsys.readouterr().out)["days"]
    assert day["causes"]["no_starttls"] >= 1
    assert prove(proven, "posture", "nowhere.test") == 1
    capsys.readouterr()
    assert prove(proven, "dry-run", "TLS=required", "TLS_Verify=host") == 3
    said = capsys.readouterr().out
    assert (
        "clear.test: 1 messages, 1 would have waited (no_starttls 1)\ngood.test: 1 messages, would all have gone"
        in said
    )
    assert prove(proven, "dry-run", "TLS=required", "--domain", "good.test") == 0
    assert prove(proven, "dry-run", "TLS=required", "--domain", "clear.test") == 3
    assert "    host 127.0.0.1: 1\n" in capsys.readouterr().out
    for wrong in (["TLS=yes"], ["TLS"], ["Retries=3"], ["TLS=no", "--since", "yesterday"]):
        assert prove(proven, "dry-run", *wrong) == 1


@pytest.mark.peer
def test_a_message_is_found_by_what_people_know_of_it(proven: Server, capsys: Any) -> None:
    def found(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        status = prove(proven, "find", "--json", *words)
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == (0 if said["waiting"] or said["records"] else 1)
        return said

    held = found("--message-id", "<held.test-1@sender.test>")
    assert [row["recipient"] for row in held["waiting"]] == ["Someone@held.test"]
    assert {row["kind"] for row in held["records"]} == {"reception", "attempt"}
    good = found("--recipient", "someone@good.test")
    assert good["waiting"] == []
    assert [row["kind"] for row in good["records"]] == ["reception", "attempt"]
    assert len(found("--subject", "EVIDENCE ")["records"]) >= 6
    assert found("--subject", "evident") == {"waiting": [], "records": []}
    assert found("--sender-domain", "sender.test", "--since", "2100-01-01")["records"] == []
    assert len(found("--id", good["records"][0]["batch"])["records"]) == 2
    assert prove(proven, "find", "--recipient", "someone@held.test") == 0
    assert "waits in worker-0 for Someone@held.test" in capsys.readouterr().out
    assert prove(proven, "find") == 1


@pytest.mark.peer
def test_the_servers_own_key_signs_no_change(proven: Server, capsys: Any) -> None:
    """Somebody changes a record and its hash on disk, as if the server had written it, and lets the server go on."""
    log = proven.folder / "spool/evidence/worker-0"
    tampered(log, "changed")
    with pytest.raises(AssertionError, match="it is not the log that its checkpoint has signed"):
        proven.start()
    proven._process = None
    assert prove(proven, "proof", "audit") == 3
    shutil.move(log, proven.folder / "aside")
    proven.start()
    proven.stop()


def test_a_change_under_a_running_server_is_not_signed(server: Callable[..., Server]) -> None:
    with SinkThread() as sink:
        port = free_port()
        running = server(CONFIG.format(port=port, clear=sink.port)).start()
        send(port, "a@clear.test")
        running.wait_attempts("a@clear.test")
        log = running.folder / "spool/evidence/worker-0"
        note = log / "checkpoint"
        until(lambda: note.exists() and "\n2\n" in note.read_text(), "two records are signed", patience=20)
        entries = (log / "entries").read_bytes()
        size = int.from_bytes(entries[:4], "big")
        record = entries[8 : 8 + size].replace(b'"node":"mx1.', b'"node":"mx2.')
        (log / "entries").write_bytes(octets(record) + entries[8 + size :])
        with (log / "level-0").open("r+b") as file:
            file.write(tree.leaf(record))
        send(port, "b@clear.test")
        running.wait_attempts("b@clear.test")
        until(
            lambda: "hashes on disk are not those that were written" in "\n".join(running.log("paniclog.ec")),
            "told",
            20,
        )
        running.stop()
        assert main(["proof", "audit", "-c", str(running.file)]) == 3


@pytest.mark.peer
def test_an_audit_needs_the_public_key_alone_and_sees_what_is_another_log(
    proven: Server, tmp_path: Path, capsys: Any
) -> None:
    key = public_key(proven, capsys)
    folder = proven.folder / "spool/evidence"
    os.rename(folder / "key.pem", tmp_path / "key.pem")
    assert prove(proven, "proof", "audit", "--key", str(key)) == 0
    assert prove(proven, "proof", "audit") == 0
    shutil.copytree(folder / "worker-0", folder / "worker-1")
    assert prove(proven, "proof", "audit") == 3
    assert "a checkpoint is of mx1.quillon.test/worker-0" in capsys.readouterr().out
    shutil.rmtree(folder / "worker-1")
    os.unlink(folder / "worker-0/checkpoint")
    assert prove(proven, "proof", "audit") == 3
    (folder / "worker-0/checkpoint").write_text("")
    with pytest.raises(AssertionError, match="it is gone, and"):
        proven.start()
    proven._process = None


@pytest.mark.peer
def test_the_verifier_does_not_hang_on_assertions(proven: Server, capsys: Any) -> None:
    key = public_key(proven, capsys)
    folder = unpacked(proven, "clear.test-1@sender.test")
    file = folder / "0002.json"
    file.write_text(file.read_text().replace('"clear":', '"clear":1'))
    command = [sys.executable, "-O", "-I", "verify.py", ".", str(key)]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1


def test_what_each_host_made_of_a_message_is_on_record(server: Callable[..., Server]) -> None:
    """The first host takes all of it in clear and puts it off; the second one takes it."""
    port, at = free_port(), port_on(["127.0.9.1", "127.0.9.2"])
    later = SinkThread(
        lambda e: Reply(451, "4.2.0", "<john.doe@two.test> later") if isinstance(e, Data) else None,
        host="127.0.9.1",
        port=at,
    )
    with later, SinkThread(host="127.0.9.2", port=at):
        config = CONFIG.format(port=port, clear=1)
        routes = f'Domain "two.test" {{ Routes = ( "127.0.9.1:{at}" "127.0.9.2:{at}" ) }}'
        running = server(config + routes).start()
        send(port, "x@two.test", message_id="two@two.test")
        running.wait_attempts("x@two.test")
        running.stop()
        _, refused, taken = rows(running)
        assert (refused["kind"], refused["outcome"], refused["host"]["ip"]) == ("host", "transient", "127.0.9.1")
        assert refused["clear"] > 100
        assert refused["reply"] == "451 4.2.0 <(address)> later", "no reply names a person"
        assert (taken["kind"], taken["outcome"], taken["id"]) == ("attempt", "delivered", refused["id"])


def test_two_servers_do_not_write_into_one_log(server: Callable[..., Server], tmp_path: Path) -> None:
    config = CONFIG.replace("evidence {{", f'evidence {{{{ folder = "{tmp_path}/shared"')
    server(config.format(port=free_port(), clear=1)).start()
    with pytest.raises(AssertionError, match="another server writes its evidence here"):
        server(config.format(port=free_port(), clear=1), name="second").start()


def test_the_log_of_a_worker_that_is_no_more_is_signed_to_its_end(server: Callable[..., Server], capsys: Any) -> None:
    with SinkThread() as sink:
        config = CONFIG.format(port=free_port(), clear=sink.port).replace("checkpoint_interval = 1", "")
        port = int(config.partition('Listen "127.0.0.1:')[2].partition('"')[0])
        running = server(config, workers=3).start()
        for number in range(40):
            send(port, f"a{number}@clear.test")
        running.wait_attempts(*(f"a{number}@clear.test" for number in range(40)))
        running.kill()
    running.configure(config, workers=1)
    running.start()
    running.stop()
    assert prove(running, "proof", "audit") == 0
    told = re.findall(r"(\d+) records, (\d+) under a signed checkpoint", capsys.readouterr().out)
    assert sum(int(size) for size, _ in told) == 80
    assert all(size == signed for size, signed in told), told


def test_large_messages_are_found_as_well(server: Callable[..., Server], capsys: Any) -> None:
    with SinkThread() as sink:
        port = free_port()
        running = server("Large_Message_Threshold = 1000\n" + CONFIG.format(port=port, clear=sink.port)).start()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            text = "Message-ID: <big@home>\r\nSubject: big\r\n\r\n" + "x" * 70 + "\r\n"
            client.sendmail("a@sender.test", ["b@clear.test"], text + ("y" * 70 + "\r\n") * 200)
        running.wait_attempts("b@clear.test")
        running.stop()
        assert prove(running, "prove", "big@home") == 0
    reception = next(row for row in rows(running) if row["kind"] == "reception")
    stored = sink.messages[0].data
    assert reception["sha256"] == hashlib.sha256(stored).hexdigest()


TSA_CONFIG = """
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
clock_precision_digits = 3
ordering = yes
tsa_name = yes
ess_cert_id_alg = sha256
[extensions]
extendedKeyUsage = critical, timeStamping
"""


class StampAuthority:
    """One that `openssl ts` answers for, over HTTP. `mood` is `good`, `refuses`, `lies` or `gone`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.mood, self.asked = folder, "good", 0
        (folder / "ts.cnf").write_text(TSA_CONFIG.format(folder=folder))
        (folder / "serial").write_text("01\n")
        self._openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 9 -subj /CN=Stamps")
        self._openssl("req -newkey rsa:2048 -nodes -keyout tsa.key -out tsa.csr -subj /CN=tsa.test")
        signed = "x509 -req -in tsa.csr -CA ca.pem -CAkey ca.key -days 9 -out tsa.pem -extfile ts.cnf"
        self._openssl(f"{signed} -extensions extensions")
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/timestamp-query"
                body = authority.answer(query)
                self.send_response(200 if body else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/tsr"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _openssl(self, words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *words.split()], cwd=self.folder, check=True, capture_output=True, **more)

    def answer(self, query: bytes) -> bytes:
        self.asked += 1
        if self.mood == "gone":
            return b""
        if self.mood == "lies":
            (self.folder / "other").write_bytes(b"something else")
            query = self._openssl("ts -query -data other -sha256 -cert").stdout
        elif self.mood == "refuses":
            query = self._openssl("ts -query -data ts.cnf -md5").stdout
        (self.folder / "query").write_bytes(query)
        made = "ts -reply -queryfile query -config ts.cnf -section here -signer tsa.pem -inkey tsa.key -chain ca.pem"
        return self._openssl(made).stdout


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    require("openssl")
    made = StampAuthority(tmp_path / "tsa")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.peer
def test_an_authority_outside_says_when(
    server: Callable[..., Server], authority: StampAuthority, tmp_path: Path, capsys: Any
) -> None:
    port = free_port()
    stamped = f"""time_stamp_authority = "{authority.url}" time_stamp_ca = "{authority.folder}/ca.pem"
        time_stamp_interval = 1 checkpoint_interval = 1"""
    with SinkThread() as sink:
        text = CONFIG.format(port=port, clear=sink.port).replace("checkpoint_interval = 1", stamped)
        running = server(text).start()
        log = running.folder / "spool/evidence/worker-0"
        authority.mood = "gone"
        send(port, "a@clear.test", message_id="1@sender.test")
        running.wait_attempts("a@clear.test")
        for mood in ("gone", "lies", "refuses"):
            authority.mood, authority.asked = mood, 0
            until(lambda: authority.asked, f"an authority that {mood} is asked again")
        authority.mood = "good"
        until(lambda: list(log.glob("stamps/*.tsr")), "a time stamp")
        until(lambda: "gives time stamps again" in "".join(running.log("paniclog.ec")), "word of that")
        send(port, "b@clear.test", message_id="2@sender.test")
        running.wait_attempts("b@clear.test")
        until(lambda: len(list(log.glob("stamps/*.tsr"))) == 2, "another one")
        running.stop()
    assert sum("status 503" in line for line in running.log("paniclog.ec")) == 1

    capsys.readouterr()
    assert prove(running, "proof", "audit") == 0
    assert "under a time stamp of 20" in capsys.readouterr().out
    key = public_key(running, capsys)
    folder = unpacked(running, "1@sender.test")
    command = [sys.executable, "-I", "-S", "verify.py", ".", str(key), "--tsa", f"{authority.folder}/ca.pem"]

    def verify() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    told = verify()
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("in the log by ") == len(list(folder.glob("*.tsr"))) == 2
    assert "with a time stamp" in verified(folder, key).stdout
    first, second = sorted(log.glob("stamps/*.tsr"), key=lambda file: int(file.stem))
    (folder / "0001.tsr").write_bytes(second.read_bytes())
    assert "is no time stamp of this checkpoint" in verify().stderr
    os.unlink(folder / "0001.tsr")
    assert "has no time stamp yet" in verify().stderr

    capsys.readouterr()
    second.write_bytes(first.read_bytes())
    assert prove(running, "proof", "audit") == 3
    assert f"stamps/{second.name}: the time stamp is of something else" in capsys.readouterr().out
    first.write_bytes(b"garbage")
    second.with_suffix(".note").write_bytes(b"\xff")
    assert prove(running, "proof", "audit") == 3
    assert f"stamps/{second.stem}.note cannot be read" in capsys.readouterr().out
    shutil.rmtree(folder)
    assert verified(unpacked(running, "1@sender.test"), key).returncode == 0, "by the last checkpoint"
    assert not list(folder.glob("*.tsr"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ('time_stamp_authority = "https://tsa.test/"', "go together"),
        ('time_stamp_ca = "/etc/passwd"', "go together"),
        ('time_stamp_authority = "tsa.test" time_stamp_ca = "/etc/passwd"', "it is a URL"),
        ('time_stamp_authority = "https://tsa.test/" time_stamp_ca = "/etc/passwd"', "no certificate in PEM"),
        ('time_stamp_authority = "https://tsa.test/" time_stamp_ca = "/missing.pem"', "/missing.pem"),
    ],
)
def test_time_stamps_that_nothing_could_verify_are_refused(
    server: Callable[..., Server], capsys: Any, options: str, word: str
) -> None:
    given = server(f"evidence {{ {options} }}")
    assert main(["check", "-c", str(given.file)]) == 2
    told = capsys.readouterr()
    assert word in told.out + told.err
