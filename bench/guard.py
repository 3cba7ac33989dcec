"""Count the instructions that a worker executes per message, and compare with what is recorded in bench/guard.json.

    python bench/guard.py [--rows accept1,...] [--record] [--profile FOLDER]

One worker runs under callgrind (valgrind), with sessions and TLS, spool and delivery as they are; the load generator
and the sink run outside. Instructions are those of user space in all threads, and differ by less than a percent from
run to run, whatever else the machine does. Status 1 if a row is dearer than recorded by more than TOLERANCE.

Figures hold for one version of Python and one OpenSSL, for a kind of processor, and for Quillon as its files are or
compiled: with others there is nothing to compare with, which is said.
`--record` writes the figures of this machine's versions. `--profile` keeps callgrind's files for callgrind_annotate and
kcachegrind; bench/README.md tells how to read them.

Needs valgrind, and what bench/run.py needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import uvloop
from OpenSSL import SSL

import run as bench
from quillon.app.worker import Worker
from quillon.config.load import load
from quillon.mail import reply
from quillon.net.channel import Channel

RECORD = bench.HERE / "guard.json"
TOLERANCE = 0.03
WARM_UP, COUNT = 40, 200
PATIENCE = 300.0  # seconds for a step under valgrind

FLAGS = {"adx", "avx2", "avx512f", "bmi2", "sha_ni", "vaes"}

# to which domain it goes, options of the load generator, and what the configuration has beside the rest
ROWS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "accept1": ("held", ("-m", "1"), ""),
    "accept100": ("held", ("-m", "100"), ""),
    "relay1": ("relayed", ("-m", "1"), ""),
    "relay20": ("relayed", ("-m", "20"), ""),
    "accepttls1": ("held", ("-m", "1", "-T"), ""),
    "handshake": ("held", ("-H",), ""),
    "evidence20": ("relayed", ("-m", "20"), "evidence { }"),
}


def key() -> str:
    """What the figures hold for: versions, and what of the processor decides which code libraries choose."""
    flags: set[str] = set()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    versions = f"{python}, {' '.join(platform.libc_ver())}, {openssl}"
    form = "" if reply.__file__.endswith(".py") else ", compiled"
    return f"{versions}, {platform.machine()} {' '.join(sorted(flags & FLAGS))}".rstrip() + form


# the worker, under valgrind ----------------------------------------------------------------------------------------


def serve(config_path: str, port: int) -> None:
    """One worker in this process, until SIGTERM."""
    config = load(config_path).config
    assert config is not None
    ours, theirs = Channel.pair()
    sock = socket.create_server(("127.0.0.1", port))
    worker = Worker(config, 0, 1, {f"127.0.0.1:{port}": sock}, theirs)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(worker.run())
    ours.sock.close()


def configuration(folder: Path, port: int, sink: int, more: str) -> Path:
    """Mail for held.example stays, other mail goes to the sink."""
    certificate = bench.CACHE / "certs/ecdsa"
    path = folder / "ecelerity.conf"
    path.write_text(
        f"""Hostname = mx.bench.example
Workers = 1
SpoolBase = spool
PidFile = quillon.pid
ec_logger "main" {{ mainlog = mainlog.ec rejectlog = rejectlog.ec paniclog = paniclog.ec }}
ESMTP_Listener {{
  Relay_Hosts = ( 127.0.0.0/8 )
  Listen "127.0.0.1:{port}" {{
    TLS_Certificate = "{certificate}.crt" TLS_Key = "{certificate}.key" TLS_Verify_Mode = none
    SMTP_Extensions = ( "ENHANCEDSTATUSCODES" "STARTTLS" )
  }}
}}
Domain held.example {{ Suspend_Delivery = true }}
Domain relayed.example {{ Gateway = "127.0.0.1:{sink}" }}
{more}
"""
    )
    return path


# the parent -------------------------------------------------------------------------------------------------------


class Counted:
    """A worker under callgrind, with `more` in its configuration."""

    def __init__(self, folder: Path, more: str) -> None:
        self.folder = folder
        self.port, self.sink = bench.free_port(), bench.free_port()
        config = configuration(folder, self.port, self.sink, more)
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command = [*tool, sys.executable, __file__, "--serve", str(config), str(self.port)]
        # a copy by one instruction an octet, as glibc has it for some processors, would count as work
        tunables = "glibc.cpu.hwcaps=-ERMS,-AVX512F,-AVX2"
        environment = {**os.environ, "PYTHONHASHSEED": "0", "GLIBC_TUNABLES": tunables}
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._dumps = 0

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
                if sock.recv(100).startswith(b"220"):
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the worker did not start:\n{self._log.read_text()[-2000:]}")

    def tell(self, *words: str) -> None:
        """A command for callgrind."""
        command = ["vgdb", f"--pid={self._process.pid}", *words]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)

    def dump(self) -> tuple[int, Path]:
        """Instructions since the counters were set to zero, and the file that tells which."""
        self.tell("dump")
        self._dumps += 1
        path = self.folder / f"out.{self._dumps}"
        found = re.search(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{path}: callgrind tells no total")
        return int(found[1]), path

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def send(port: int, options: tuple[str, ...], count: int, sink: bench.Sink | None) -> None:
    """Messages, or handshakes, one after the other, until all are done with. Raises RuntimeError."""
    if sink is not None:
        sink.expect(count)
    if bench.load(port, options, count, PATIENCE) != count:
        raise RuntimeError(f"not all of {count} were done")
    if sink is not None:
        sink.wait()
    time.sleep(1.5)  # what is put off for a second belongs to the messages


def measure(rows: list[str], profile: Path | None) -> dict[str, int]:
    """Instructions per message of each row."""
    found: dict[str, int] = {}
    for more in dict.fromkeys(ROWS[row][2] for row in rows):
        found |= _measure([row for row in rows if ROWS[row][2] == more], more, profile)
    return found


def _measure(rows: list[str], more: str, profile: Path | None) -> dict[str, int]:
    """Of one worker."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="guard-") as name:
        worker = Counted(Path(name), more)
        sink = bench.Sink(worker.sink, tls=False)
        try:
            worker.wait()
            worker.tell("instrumentation", "on")
            for row in rows:
                domain, options, _ = ROWS[row]
                relayed = sink if domain == "relayed" else None
                told = ("-c", "1", "-t", f"rcpt@{domain}.example", "-w", f"{PATIENCE:.0f}", *options)
                send(worker.port, told, WARM_UP, relayed)
                worker.tell("zero")
                send(worker.port, told, COUNT, relayed)
                total, path = worker.dump()
                found[row] = round(total / COUNT)
                print(f"{row}: {found[row]:,} instructions a message", flush=True)
                if profile is not None:
                    profile.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, profile / f"callgrind.out.{row}")
        finally:
            worker.stop()
            sink.close()
    return found


def compare(found: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """What is dearer than recorded, in words."""
    words = []
    for row, count in found.items():
        before = recorded.get(row)
        if before is None:
            words.append(f"{row}: nothing is recorded")
        elif count > before * (1 + TOLERANCE):
            words.append(f"{row}: {count:,} instructions a message, {count / before - 1:+.1%} of {before:,}")
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--record", action="store_true", help="write the figures of this machine's versions")
    parser.add_argument("--profile", type=Path, help="a folder for callgrind's files")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], int(given.serve[1]))
        return 0
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows = [row for row in given.rows.split(",") if row]
    if key() not in recorded and not given.record:
        print(f"guard: nothing is recorded for {key()}; --record writes it")
        return 0
    if shutil.which("valgrind") is None:
        print("guard: valgrind is not installed", file=sys.stderr)
        return 2
    bench.build()
    found = measure(rows, given.profile)
    if given.record:
        recorded[key()] = recorded.get(key(), {}) | found
        RECORD.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        return 0
    dearer = compare(found, recorded[key()])
    for words in dearer:
        print(f"guard: {words}", file=sys.stderr)
    return 1 if dearer else 0


if __name__ == "__main__":
    sys.exit(main())
