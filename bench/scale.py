"""What a large queue costs: deliveries, clients, memory and the start, beside the same server with none.

    python bench/scale.py [--destinations 100000] [--queued 1000000] [--servers quillon,postfix] [--no-write]

One worker, so that its figures are those of one event loop. "Blocked" destinations are suspended, "dead" ones refuse
connections. Ratios are of two runs in the same hour; the page is docs/performance-scale.md. Postfix, where it is asked
to do the same, has a transport of each kind, which names the destinations by domain; it needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quillon.mail.address import Mailbox
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, Origin
from quillon.spool.record import encode_batch, encode_message
from quillon.spool.store import Store
from run import CACHE, Server, Sink, build, cpu_seconds, descendants, free_port, load

PAGE = Path(__file__).resolve().parent.parent / "docs/performance-scale.md"
KNOWN = CACHE / "scale.json"  # the last figures of each part, so that one can be measured again by itself
BODY = b"Subject: scale\r\n\r\n" + b"x" * 1000 + b"\r\n"


@dataclass
class Mta:
    """A server that tries again after so many seconds what a host did not take; 1,200 where that is not measured."""

    folder: Path
    retry: int = 1200
    port: int = field(default_factory=free_port)
    sink_port: int = field(default_factory=free_port)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Gives the process id of what is measured, once it answers."""
        raise NotImplementedError
        yield 0

    def banner(self, patience: float = 60.0) -> float | None:
        """Seconds until an honest client has its banner; None if it gets none."""
        begin = time.monotonic()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), patience) as sock:
            if sock.recv(100).startswith(b"220"):
                return time.monotonic() - begin
        return None

    def queue(self, domain: str, count: int, destinations: int) -> None:
        """Send messages to so many domains d0.DOMAIN ... and so on."""
        options = ("-s", "200", "-D", str(destinations), "-t", f"r@{domain}", "-m", "100", "-w", "600")
        command = [str(CACHE / "bin/smtpload"), "-c", "20", "-n", str(count), *options, f"127.0.0.1:{self.port}"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def relay_us(self, pid: int, count: int) -> float:
        """CPU of a process and all below it for each message relayed to one destination, in microseconds."""
        sink = Sink(self.sink_port, tls=False)
        try:
            for number in (300, count):
                before = cpu_seconds(pid)
                sink.expect(number)
                load(self.port, ("-m", "20", "-t", "r@one.ok.example"), number)
                sink.wait()
            return (cpu_seconds(pid) - before) / count * 1e6
        finally:
            sink.close()


@dataclass
class Quillon(Mta):
    """Ours, with one worker."""

    def __post_init__(self) -> None:
        self.write()

    def write(self, more: str = "") -> None:
        """Its configuration, with other options."""
        (self.folder / "ecelerity.conf").write_text(
            f"""Hostname = mx.bench.example Workers = 1 PidFile = quillon.pid SpoolBase = spool
            Retry_Interval = {self.retry} Max_Retry_Interval = {self.retry} Max_Retries = none
            Spool_Minimum_Free_Space = 1000000 Max_Resident_Messages = 1000 Drain_Timeout = 1
            ec_logger "main" {{ mainlog = mainlog.ec rejectlog = rejectlog.ec paniclog = paniclog.ec }}
            ESMTP_Listener {{ Relay_Hosts = ( 127.0.0.0/8 ) Listen "127.0.0.1:{self.port}" {{ }} }}
            Domain "*.blocked.example" {{ Suspend_Delivery = true }}
            Domain "*.dead.example" {{ Routes = ( "smtp://127.0.0.77?port=9&type=a" ) Host_Failure_Retry = 1 }}
            Domain "*.ok.example" {{ Routes = ( "smtp://127.0.0.1?port={self.sink_port}&type=a" ) }}
            {more}"""
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "quillon", "serve", "-c", str(self.folder / "ecelerity.conf")],
                stdout=log,
                stderr=log,
            )
        try:
            while self.banner(1.0) is None:
                if process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:])
                time.sleep(0.01)
            yield next(pid for pid in descendants(process.pid) if pid != process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for pid in descendants(process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


class Postfix(Mta):
    """All its processes count."""

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        told = {"MODE": "scale", "PROFILE": "tuned", "RETRY": str(self.retry)}
        with Addresses(), Server("postfix", told, self.port, self.sink_port).running() as root:
            yield root


class Addresses:
    """A DNS in which each name has an address: 127.0.0.77 below `dead`, else 127.0.0.1."""

    def __enter__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.54", 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of a socket without connections, which is woken all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(4096)
            if not data:
                return
            asked = dns.message.from_wire(data)
            answer = dns.message.make_response(asked)
            answer.flags |= dns.flags.RA
            name = asked.question[0].name
            if asked.question[0].rdtype == dns.rdatatype.A:
                address = "127.0.0.77" if b"dead" in name.labels else "127.0.0.1"
                answer.answer.append(dns.rrset.from_text(name, 3600, "IN", "A", address))
            self._socket.sendto(answer.to_wire(), client)


class Waits:
    """The waits of an honest client for its banner, while something else goes on."""

    def __init__(self, server: Mta) -> None:
        self.found: list[float] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Waits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.found.append(self._server.banner() or 60.0)

    def p99(self) -> float:
        """In milliseconds."""
        return sorted(self.found)[int(len(self.found) * 0.99)] * 1000

    def longest(self) -> float:
        """In milliseconds."""
        return max(self.found) * 1000


def blocked(kind: type[Mta], destinations: int) -> dict[str, float]:
    """A delivered message with blocked destinations against none."""
    with tempfile.TemporaryDirectory() as folder:
        server = kind(Path(folder))
        with server.running() as pid:
            before = server.relay_us(pid, 5000)
            server.queue("blocked.example", destinations, destinations)
            time.sleep(2)
            after = server.relay_us(pid, 5000)
    return {"none": before, "blocked": after, "ratio": after / before}


def dead(kind: type[Mta], destinations: int) -> dict[str, float]:
    """An honest client's wait with destinations queued, a tenth of them dead and tried again and again."""
    with tempfile.TemporaryDirectory() as folder:
        server = kind(Path(folder), retry=5)
        with server.running():
            with Waits(server) as idle:
                time.sleep(3)
            server.queue("blocked.example", destinations * 9 // 10, destinations * 9 // 10)
            server.queue("dead.example", destinations // 10, destinations // 10)
            with Waits(server) as waits:
                time.sleep(20)
    return {"idle_p99_ms": idle.p99(), "p99_ms": waits.p99(), "longest_ms": waits.longest()}


def healthy(kind: type[Mta], domains: int, ill: int) -> dict[str, float]:
    """How fast mail of healthy domains leaves beside dead ones, against all healthy: messages a second, of three runs
    each in turn the middle one, for this is wall time."""
    rates: dict[int, list[float]] = {0: [], ill: []}
    for number in (0, ill) * 3:
        with tempfile.TemporaryDirectory() as folder:
            server = kind(Path(folder), retry=60)
            with server.running():
                if number:
                    server.queue("dead.example", number * 20, number)
                sink = Sink(server.sink_port, tls=False)
                try:
                    count = (domains - number) * 10
                    sink.expect(count)
                    begin = time.monotonic()
                    server.queue("ok.example", count, domains - number)
                    sink.wait()
                    rates[number].append(count / (time.monotonic() - begin))
                finally:
                    sink.close()
    alone, beside = (statistics.median(found) for found in rates.values())
    return {"all_healthy": alone, "beside_dead": beside, "ratio": beside / alone}


def fill(folder: Path, count: int, destinations: int) -> None:
    """A spool with so many messages that wait, as a server would have left it."""
    store = Store(folder / "spool/worker-0", 0o640, print)
    store.open()
    store.release()
    now = time.time()
    ids = IdSource(1)
    origin = Origin("127.0.0.1", "esmtp", NULL_ID)
    database = sqlite3.connect(folder / "spool/worker-0/spool.db")
    database.execute("PRAGMA synchronous=OFF")
    batches, messages = [], []
    for number in range(count):
        at = now - count + number
        batch = Batch(ids.next(at), Mailbox("a", "bench.example"), origin, now, len(BODY), BODY)
        message = Message(ids.next(at), batch, Mailbox("r", f"d{number % destinations}.blocked.example"))
        message.routing_domain = message.recipient.domain
        batches.append((batch.id.number, encode_batch(batch), BODY, ""))
        messages.append((message.id.number, batch.id.number, encode_message(message)))
        if len(batches) == 10000 or number == count - 1:
            database.executemany("INSERT INTO batch VALUES(?,?,?,?)", batches)
            database.executemany("INSERT INTO message VALUES(?,?,?)", messages)
            database.commit()
            batches, messages = [], []
    database.close()


def large(queued: int, destinations: int) -> dict[str, float]:
    """A start with very many messages: until it serves, until all are in their queues, memory, and a reload."""
    with tempfile.TemporaryDirectory() as folder:
        server = Quillon(Path(folder))
        fill(Path(folder), queued, destinations)
        begin = time.monotonic()
        with server.running() as pid:
            serves = time.monotonic() - begin
            with Waits(server) as loading:
                while not quiet(pid):
                    pass
            loaded = time.monotonic() - begin
            memory = next(
                int(line.split()[1]) / 1024
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("VmRSS")
            )
            server.write("Retry_Spread = 5")
            with Waits(server) as reloading:
                os.kill(parent(pid), signal.SIGHUP)
                time.sleep(1)
                while not quiet(pid):
                    pass
    return {
        "serves_s": serves,
        "loaded_s": loaded,
        "rss_mib": memory,
        "loading_p99_ms": loading.p99(),
        "reload_longest_ms": reloading.longest(),
        "reload_p99_ms": reloading.p99(),
    }


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def quiet(pid: int) -> bool:
    """Whether a process has next to nothing to do in the second that this takes."""
    before = cpu_seconds(pid)
    time.sleep(1)
    return cpu_seconds(pid) - before < 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--destinations", type=int, default=100_000)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--only", default="blocked,dead,healthy,large")
    parser.add_argument("--servers", default="quillon,postfix")
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args()
    build()
    kinds: dict[str, type[Mta]] = {"quillon": Quillon, "postfix": Postfix}
    parts: dict[str, Callable[[type[Mta]], dict[str, float]]] = {
        "blocked": lambda kind: blocked(kind, given.destinations),
        "dead": lambda kind: dead(kind, given.destinations),
        "healthy": lambda kind: healthy(kind, 1000, 100),
    }
    known: dict[str, dict[str, float]] = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    for name in given.only.split(","):
        for server in given.servers.split(",") if name in parts else ["quillon"]:
            found = parts[name](kinds[server]) if name in parts else large(given.queued, given.destinations)
            known[f"{name} {server}"] = found
            print(name, server, {key: round(value, 2) for key, value in found.items()}, flush=True)
            if not given.no_write:
                KNOWN.write_text(json.dumps(known))
    if not given.no_write and all(f"{name} quillon" in known for name in (*parts, "large")):
        PAGE.write_text(report(known, given.destinations, given.queued))
    return 0


def report(known: dict[str, dict[str, float]], destinations: int, queued: int) -> str:
    """The page, in Markdown."""
    many = f"{destinations:,}"
    rows = (
        ("blocked", f"CPU of a relayed message with {many} blocked destinations, us", "none", "blocked"),
        ("dead", f"wait for a banner with {many} destinations, a tenth of them dead, p99, ms", "idle_p99_ms", "p99_ms"),
        ("healthy", "messages a second to 900 healthy domains, beside 100 dead ones", "all_healthy", "beside_dead"),
    )
    lines = []
    for part, words, key, bearing in rows:
        for server in ("quillon", "postfix"):
            if (one := known.get(f"{part} {server}")) is not None:
                ratio = f"{one[bearing] / one[key]:.2f}"
                lines.append(f"| {words} | {server.title()} | {one[key]:.0f} | {one[bearing]:.0f} | {ratio} |")
    large = known["large quillon"]
    return f"""# Performance with a large queue

Written by `make bench-scale` on {datetime.date.today().isoformat()}, {os.cpu_count()} cores. Each row is
measured beside the same server without what it has to bear, in the same run. Quillon has one worker here, and its
CPU is that of the worker; Postfix (tuned as in `bench/postfix/start.sh`) has all its processes.

| What | Server | Without | With | Ratio |
| --- | --- | --- | --- | --- |
{chr(10).join(lines)}

With {queued:,} messages queued for {many} destinations Quillon answers {large["serves_s"]:.1f} s after its start,
and has them all in their queues after {large["loaded_s"]:.0f} s; its worker takes {large["rss_mib"]:.0f} MiB then.
While they are loaded 99 of 100 clients have their banner within {large["loading_p99_ms"]:.0f} ms. During a reload the
longest wait for a banner is {large["reload_longest_ms"]:.0f} ms.
"""


if __name__ == "__main__":
    sys.exit(main())
