"""A witness outside signs what a log of evidence has grown to, and what was kept of it is held against it."""

from __future__ import annotations

import base64
import hashlib
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quillon.cli.main import main
from quillon.evidence import note, tree
from tests.support.server import Server, free_port, until
from tests.support.sinks import SinkThread
from tests.system.test_evidence import CONFIG, prove, public_key, send, unpacked

NAME = "witness.test/w1"


class Outsider:
    """A witness as C2SP tlog-witness has it, of one log each time. `mood` is good, broken, or forges."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.seen: dict[str, tuple[int, bytes]] = {}
        self.mood = "good"
        self.statuses: list[int] = []
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                assert self.path == "/here/add-checkpoint"
                status, said = witness.answer(body)
                witness.statuses.append(status)
                self.send_response(status)
                self.send_header("Content-Type", "text/x.tlog.size" if status == 409 else "text/plain")
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/here"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def verifier_key(self) -> str:
        octets = b"\x04" + note.raw(self.key.public_key())
        known = hashlib.sha256(f"{NAME}\n".encode() + octets).hexdigest()[:8]
        return f"{NAME}+{known}+{base64.b64encode(octets).decode()}"

    def answer(self, body: str) -> tuple[int, str]:
        if self.mood == "broken":
            return 500, "no room"
        head, text = body.split("\n\n", 1)
        first, *lines = head.split("\n")
        old, path = int(first.removeprefix("old ")), [base64.b64decode(line) for line in lines]
        origin, size, root = text.split("\n")[:3]
        before, known = self.seen.get(origin, (0, b""))
        if old != before:
            return 409, f"{before}\n"
        if old > int(size):
            return 400, ""
        if not tree.extends(old, known, int(size), base64.b64decode(root), path):
            return 422, ""
        self.seen[origin] = (int(size), base64.b64decode(root))
        at = int(time.time())
        signed = f"cosignature/v1\ntime {at}\n{text.partition(chr(10) * 2)[0]}\n".encode()
        key = self.key if self.mood == "good" else Ed25519PrivateKey.generate()
        known_by = base64.b64decode(self.verifier_key.split("+", 2)[2])
        key_id = hashlib.sha256(f"{NAME}\n".encode() + known_by).digest()[:4]
        signature = base64.b64encode(key_id + struct.pack(">Q", at) + key.sign(signed)).decode()
        other = base64.b64encode(b"ABCDxxxx").decode()
        return 200, f"\u2014 somebody.test {other}\n\u2014 {NAME} {signature}\n"


@pytest.fixture
def outsider() -> Iterator[Outsider]:
    made = Outsider()
    yield made
    made.server.shutdown()
    made.server.server_close()


def configuration(outsider: Outsider, port: int, sink: int) -> str:
    more = f"""checkpoint_interval = 1 witness_interval = 1
        witness = "{outsider.url}" witness_key = "{outsider.verifier_key}" """
    return CONFIG.format(port=port, clear=sink).replace("checkpoint_interval = 1", more)


def verify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "verify.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def read_size(log: Path, name: str) -> int:
    try:
        return note.size_of((log / name).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def test_a_witness_signs_what_only_grows(
    server: Callable[..., Server], outsider: Outsider, tmp_path: Path, capsys: Any
) -> None:
    port = free_port()
    with SinkThread() as sink:
        running = server(configuration(outsider, port, sink.port)).start()
        log = running.folder / "spool/evidence/worker-0"
        outsider.mood = "broken"
        send(port, "a@clear.test", message_id="1@sender.test")
        running.wait_attempts("a@clear.test")
        until(lambda: outsider.statuses.count(500) > 1, "it is asked again")
        outsider.mood = "forges"
        until(lambda: 200 in outsider.statuses, "an answer that its key has not signed")
        outsider.mood = "good"
        until((log / "witnessed").exists, "what it has signed meanwhile is asked for anew")
        assert 409 in outsider.statuses
        kept = tmp_path / "kept"
        shutil.copy(log / "witnessed", kept)
        for number in range(5):
            send(port, f"b{number}@clear.test", message_id=f"b{number}@sender.test")
        running.wait_attempts(*(f"b{number}@clear.test" for number in range(5)))
        until(lambda: read_size(log, "witnessed") == 12, "all is witnessed")
        running.stop()
    panics = "".join(running.log("paniclog.ec"))
    assert panics.count("status 500 no room".replace(" no", ": no")) == 1
    assert "is not signed by witness_key" in panics
    assert "signs checkpoints again" in panics

    key = public_key(running, capsys)
    assert prove(running, "proof", "audit") == 0
    assert "12 under the signature of a witness of 20" in capsys.readouterr().out
    folder = unpacked(running, "1@sender.test")
    told = verify(folder, ".", str(key), "--witness", outsider.verifier_key)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("witnessed 20") == 2
    other = Outsider()
    assert "not signed by this witness" in verify(folder, ".", str(key), "--witness", other.verifier_key).stderr
    other.server.shutdown()
    other.server.server_close()
    (folder / "0001.witnessed").unlink()
    assert "is not witnessed yet" in verify(folder, ".", str(key), "--witness", outsider.verifier_key).stderr

    made = tmp_path / "extension"
    capsys.readouterr()
    assert prove(running, "proof", "extends", str(kept), "-o", str(made)) == 0
    assert "none of those" in capsys.readouterr().out
    told = verify(folder, "--extends", str(kept), str(made), str(key))
    assert told.returncode == 0, told.stderr
    assert "12 records, none of those" in told.stdout
    lines = made.read_text().split("\n")
    lines[1] = base64.b64encode(bytes(32)).decode()
    made.write_text("\n".join(lines))
    assert "does not hold what it did" in verify(folder, "--extends", str(kept), str(made), str(key)).stderr

    written = (log / "witnessed").read_text()
    (log / "witnessed").write_text(written.rpartition("\u2014")[0])
    assert prove(running, "proof", "audit") == 3
    assert f"witnessed: it is not signed by {NAME}" in capsys.readouterr().out


def test_a_log_that_was_written_anew_is_not_signed(
    server: Callable[..., Server], outsider: Outsider, tmp_path: Path, capsys: Any
) -> None:
    """By whoever has the key: the witness remembers, and so does who has kept a checkpoint."""
    port = free_port()
    with SinkThread() as sink:
        running = server(configuration(outsider, port, sink.port)).start()
        log = running.folder / "spool/evidence/worker-0"
        for number in range(3):
            send(port, f"a{number}@clear.test")
        running.wait_attempts(*(f"a{number}@clear.test" for number in range(3)))
        until(lambda: read_size(log, "witnessed") == 6, "all is witnessed")
        running.stop()
        kept = tmp_path / "kept"
        shutil.copy(log / "checkpoint", kept)
        shutil.rmtree(log)

        running.start()
        send(port, "b@clear.test")
        running.wait_attempts("b@clear.test")
        until(lambda: "this log was cut back" in "".join(running.log("paniclog.ec")), "it is missed")
        for number in range(3):
            send(port, f"c{number}@clear.test")
        until(lambda: "was written anew" in "".join(running.log("paniclog.ec")), "it is another one")
        running.stop()
    assert not (log / "witnessed").exists()
    capsys.readouterr()
    assert prove(running, "proof", "extends", str(kept)) == 3
    assert "not those that the checkpoint of 6 has signed" in capsys.readouterr().out
    assert prove(running, "proof", "extends") == 1
    (tmp_path / "none").write_text("nothing\n")
    assert prove(running, "proof", "extends", str(tmp_path / "none")) == 1


def test_checkpoints_of_many_sizes_are_extended(server: Callable[..., Server], tmp_path: Path, capsys: Any) -> None:
    """Powers of two among them, whose root begins the way."""
    port = free_port()
    with SinkThread() as sink:
        running = server(CONFIG.format(port=port, clear=sink.port)).start()
        log = running.folder / "spool/evidence/worker-0"
        kept = {}
        for number in range(9):
            send(port, f"a{number}@clear.test")
            running.wait_attempts(f"a{number}@clear.test")
            size = until(lambda: read_size(log, "checkpoint"), "a checkpoint")
            kept[size] = tmp_path / str(size)
            shutil.copy(log / "checkpoint", kept[size])
        running.stop()
    key = public_key(running, capsys)
    source = Path(note.__file__).with_name("verify.py")
    shutil.copy(source, tmp_path)
    for file in kept.values():
        assert prove(running, "proof", "extends", str(file), "-o", str(tmp_path / "extension")) == 0
        told = verify(tmp_path, "--extends", str(file), "extension", str(key))
        assert told.returncode == 0, told.stderr


GOOD_KEY = "witness.test/w1+4d1a1e48+BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ('witness = "https://witness.test/"', "go together"),
        (f'witness_key = "{GOOD_KEY}"', "go together"),
        (f'witness = "witness.test" witness_key = "{GOOD_KEY}"', "it is a URL"),
        ('witness = "https://witness.test/" witness_key = "a+b"', "NAME+HASH+KEY"),
        ('witness = "https://witness.test/" witness_key = "a+b+????"', "NAME+HASH+KEY"),
        (
            f'witness = "https://witness.test/" witness_key = "{GOOD_KEY.replace("4d1a1e48", "00000000")}"',
            "its hash is",
        ),
    ],
)
def test_a_witness_that_nothing_could_verify_is_refused(
    server: Callable[..., Server], capsys: Any, options: str, word: str
) -> None:
    given = server(f"evidence {{ {options} }}")
    assert main(["check", "-c", str(given.file)]) == 2
    told = capsys.readouterr()
    assert word in told.out + told.err
