"""Measure Quillon beside Postfix and beside the machine's limit, in one run, and write docs/performance.md.

    python bench/run.py [--servers quillon,postfix] [--tests accept1,...] [--repeat N] [--no-write]

Each figure is a fresh server with an empty queue, a warm-up, and one load of 10 KiB messages. What counts is CPU time
per message of all processes of the server: wall time on a shared machine says little. `floor` is the C sink in the
place of a server, which does nothing but take the octets: what load, kernel and TLS cost at least.

Needs cc with OpenSSL's headers (libssl-dev), openssl, and for Postfix: root and the package postfix.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUILLON = Path(sys.executable).parent / "quillon"
CACHE = Path(os.environ.get("PREFIX", Path.home() / ".cache/quillon-bench"))
PAGE = HERE.parent / "docs/performance.md"
SECONDS = 6.0
CLIENT = ("-C", str(CACHE / "certs/client.crt"), "-K", str(CACHE / "certs/client.key"))


@dataclass(frozen=True)
class Test:
    """What is told to start.sh, and options of the load generator."""

    title: str
    told: dict[str, str]
    load: tuple[str, ...]
    relay: bool = False
    only: tuple[str, ...] = ()


TESTS = {
    "accept1": Test("durable reception, a connection per message", {"MODE": "hold"}, ("-m", "1")),
    "accept100": Test("durable reception, 100 messages per connection", {"MODE": "hold"}, ("-m", "100")),
    "relay1": Test("relay, a connection per message inbound", {"MODE": "relay"}, ("-m", "1"), relay=True),
    "relay20": Test("relay, 20 messages per connection inbound", {"MODE": "relay"}, ("-m", "20"), relay=True),
    "relaylarge": Test(
        "relay of messages of 100 KiB, 20 per connection inbound",
        {"MODE": "relay"},
        ("-m", "20", "-s", "102400"),
        relay=True,
    ),
    "accepttls1": Test(
        "durable reception with STARTTLS, a connection per message",
        {"MODE": "hold", "TLS": "1"},
        ("-m", "1", "-T", "-c", "60"),
    ),
    "relaytls1": Test(
        "relay with TLS on both sides, a connection per message inbound",
        {"MODE": "relay", "TLS": "1"},
        ("-m", "1", "-T", "-c", "60"),
        relay=True,
    ),
    "relayouttls": Test(
        "relay, a TLS connection per message outbound, ECDSA P-256",
        {"MODE": "relay", "TLS": "out"},
        ("-m", "20"),
        relay=True,
    ),
    "handshake": Test("STARTTLS handshake and QUIT, ECDSA P-256", {"MODE": "hold", "TLS": "1"}, ("-H", "-c", "60")),
    "handshakersa": Test(
        "STARTTLS handshake and QUIT, RSA 2048", {"MODE": "hold", "TLS": "1", "CERT": "rsa"}, ("-H", "-c", "60")
    ),
    "handshakeclient": Test(
        "STARTTLS handshake and QUIT, ECDSA P-256, with a client certificate",
        {"MODE": "hold", "TLS": "1", "CLIENTCERT": "1"},
        ("-H", "-c", "60", *CLIENT),
    ),
    "handshakersaclient": Test(
        "STARTTLS handshake and QUIT, RSA 2048, with a client certificate",
        {"MODE": "hold", "TLS": "1", "CERT": "rsa", "CLIENTCERT": "1"},
        ("-H", "-c", "60", *CLIENT),
    ),
    "handshakegnutls": Test(
        "STARTTLS handshake and QUIT, ECDSA P-256, TLS_Engine = gnutls",
        {"MODE": "hold", "TLS": "1", "ENGINE": "gnutls"},
        ("-H", "-c", "60"),
        only=("quillon",),
    ),
    "relay20evidence": Test(
        "relay, 20 messages per connection inbound, with evidence kept",
        {"MODE": "relay", "EVIDENCE": "1"},
        ("-m", "20"),
        relay=True,
        only=("quillon",),
    ),
}
IDLE = 400  # connections for the figure of memory


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def build() -> None:
    """Compile the load generator and the sink, and make certificates, once."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("smtpload", "smtpsink"):
        source, program = HERE / f"{name}.c", CACHE / "bin" / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-o", program, source, "-lssl", "-lcrypto"], check=True)
    if not (CACHE / "certs/client.crt").exists():
        environment = {**os.environ, "PREFIX": str(CACHE)}
        subprocess.run(["sh", HERE / "mkcerts.sh"], check=True, env=environment, capture_output=True)


def descendants(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                parents.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of a process tree, ended and awaited children included, in seconds."""
    ticks = 0
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(root: int) -> list[float]:
    """Proportional set size of each process of a tree, in MiB."""
    sizes = []
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    sizes.append(int(line.split()[1]) / 1024)
    return sizes


@dataclass
class Server:
    """One run of a server from its start.sh."""

    name: str
    told: dict[str, str]
    inbound: int = field(default_factory=free_port)
    outbound: int = field(default_factory=free_port)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Gives the process id of its root."""
        folder = tempfile.mkdtemp(prefix="bench-")
        os.chmod(folder, 0o755)
        environment = {
            **os.environ,
            "PREFIX": str(CACHE),
            "RUN": folder,
            "IN": f"127.0.0.1:{self.inbound}",
            "OUT": f"127.0.0.1:{self.outbound}",
            "QUILLON": str(QUILLON),
            **self.told,
        }
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen(
                ["sh", str(HERE / self.name / "start.sh")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait(process, folder)
            yield process.pid
        finally:
            for pid in reversed(descendants(process.pid)):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def _wait(self, process: subprocess.Popen[bytes], folder: str) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.inbound), 5) as sock:
                if sock.recv(100).startswith(b"220"):
                    time.sleep(1)  # start-up work that was put off
                    return
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start:\n{Path(folder, 'log').read_text()[-2000:]}")


class Sink:
    """The destination of a relay. Counts messages."""

    def __init__(self, port: int, tls: bool) -> None:
        certificate = CACHE / "certs/ecdsa"
        options = ["-T", "-C", f"{certificate}.crt", "-K", f"{certificate}.key"] if tls else []
        command = [str(CACHE / "bin/smtpsink"), *options, f"127.0.0.1:{port}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def expect(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        time.sleep(0.05)

    def wait(self) -> int:
        """Messages that have come once all that were expected have."""
        assert self._process.stdout is not None
        return int(json.loads(self._process.stdout.readline())["messages"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def load(port: int, options: tuple[str, ...], count: int, patience: float = 120) -> int:
    """Send so many messages; gives how many were accepted."""
    command = [str(CACHE / "bin/smtpload"), "-c", "20", "-n", str(count), "-w", "60", *options, f"127.0.0.1:{port}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False
    )
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return int(json.loads(done.stdout)["done"])


def measure(name: str, test: Test) -> dict[str, float]:
    """CPU microseconds per message and messages per second."""
    server = Server(name, test.told)
    sink = Sink(server.outbound, test.told.get("TLS") in ("1", "out")) if test.relay and name != "floor" else None
    with server.running() as root:
        try:

            def run(count: int) -> float:
                begin = time.monotonic()
                if sink:
                    sink.expect(count)
                done = load(server.inbound, test.load, count)
                if done != count or (sink and sink.wait() < count):
                    raise RuntimeError(f"{name}: {done} of {count} messages")
                return time.monotonic() - begin

            count = int(min(max(300 / run(300) * SECONDS, 500), 30000)) // 100 * 100
            before = cpu_seconds(root)
            seconds = run(count)
            return {"cpu_us": (cpu_seconds(root) - before) / count * 1e6, "rate": count / seconds}
        finally:
            if sink:
                sink.close()


def per_idle_connection(name: str) -> float:
    """KiB of memory that a connection takes which has done STARTTLS and says nothing."""
    server = Server(name, {"MODE": "hold", "TLS": "1", "CONNS": str(IDLE)})
    with server.running() as root:
        load(server.inbound, ("-H",), 200)  # what is allocated once
        before = sum(resident_mib(root))
        command = [str(CACHE / "bin/smtpload"), "-I", "60", "-T", "-n", str(IDLE), f"127.0.0.1:{server.inbound}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            said = holder.stdout.readline()
            if '"failed":0' not in said:
                raise RuntimeError(f"{name}: {said}")
            time.sleep(1)
            after = sum(resident_mib(root))
            holder.kill()
    return (after - before) * 1024 / IDLE


def sign_us() -> dict[str, float]:
    """Microseconds of one signature by the kind of key, as `openssl speed` finds them."""
    found = {}
    for kind, words in (("ECDSA P-256", "ecdsap256"), ("RSA 2048", "rsa2048")):
        command = ["openssl", "speed", "-seconds", "2", "-mr", words]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        line = next(line for line in said.splitlines() if line.startswith(("+F2", "+F4")))
        found[kind] = 1e6 / float(line.split(":")[3])
    return found


def at_rest() -> list[float]:
    """Memory of each process of a Quillon that does nothing, in MiB."""
    with Server("quillon", {"MODE": "relay"}).running() as root:
        return resident_mib(root)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--servers", default="quillon,postfix")
    parser.add_argument("--tests", default=",".join(TESTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args()
    build()
    servers = [name for name in given.servers.split(",") if name]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for test in given.tests.split(","):
        names = [name for name in [*servers, "floor"] if name != "floor" or not TESTS[test].relay]
        names = [name for name in names if name in (TESTS[test].only or (name,))]
        # in turns, so that each round compares what ran one after the other
        rounds = [{name: measure(name, TESTS[test]) for name in names} for _ in range(given.repeat)]
        for name in names:
            row = {key: statistics.median(one[name][key] for one in rounds) for key in ("cpu_us", "rate")}
            if "quillon" in names:
                row["ratio"] = statistics.median(one["quillon"]["cpu_us"] / one[name]["cpu_us"] for one in rounds)
            rows.setdefault(test, {})[name] = row
            print(test, name, {key: round(value, 2) for key, value in row.items()}, flush=True)
    idle = {name: per_idle_connection(name) for name in servers}
    print("idle", idle, flush=True)
    text = report(rows, servers, at_rest(), idle, sign_us())
    print(text)
    if not given.no_write:
        PAGE.write_text(text)
    return 0


def version() -> str:
    """Which Quillon was measured: compiled or not."""
    return subprocess.run([QUILLON, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def report(
    rows: dict[str, Any], servers: list[str], memory: list[float], idle: dict[str, float], signs: dict[str, float]
) -> str:
    """The page, in Markdown."""
    today = datetime.date.today().isoformat()
    columns = [*servers, "floor"]
    ratios = [name for name in columns if name != "quillon"] if "quillon" in servers else []
    head = ["What", *(f"{name}, us CPU" for name in columns), *(f"quillon / {name}" for name in ratios), "messages/s"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for test, found in rows.items():
        cells = [TESTS[test].title]
        cells += [f"{found[name]['cpu_us']:.0f}" if name in found else "" for name in columns]
        for name in ratios:
            cells.append(f"{found[name]['ratio']:.2f}" if name in found and "quillon" in found else "")
        cells.append(", ".join(f"{name} {found[name]['rate']:.0f}" for name in servers if name in found))
        lines.append("| " + " | ".join(cells) + " |")
    return f"""# Performance

Written by `make bench` on {today}: {platform.python_implementation()} {platform.python_version()},
{platform.system()} {platform.machine()}, {os.cpu_count()} cores. Messages of 10 KiB where nothing else is said, from 20
connections (60 with TLS); each figure is the median of its rounds, in which each server is started anew and measured in
turn. CPU is that of all processes of the server, kernel included, per message. The ratios are medians of those of each
round, and are what to compare; the absolute figures are of that machine at that hour.

{chr(10).join(lines)}

`floor` is a sink in C that takes the octets and does nothing with them. Quillon commits every message to disk before
it acknowledges it, as Postfix does. It ran with two workers, and calls itself
`{version()}`.

One signature takes {" and ".join(f"{us:.0f} us ({kind})" for kind, us in signs.items())} by `openssl speed` in the
same run, with the OpenSSL of the system. A TLS connection that says nothing takes
{" and ".join(f"{size:.0f} KiB ({name})" for name, size in idle.items())}, over {IDLE} connections.

Memory at rest, proportional set size in MiB, supervisor first: {", ".join(f"{size:.0f}" for size in memory)}.
"""


if __name__ == "__main__":
    sys.exit(main())
