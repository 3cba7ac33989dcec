"""A real Quillon in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from quillon.mail.message import Message
from quillon.spool.inspect import Spool, Wanted
from tests.support import warm

PATIENCE = 30.0


def _ports() -> Iterator[int]:
    """Ports out of reach of those that the system gives to connections, in turn: none comes twice while others are
    left. Each process that runs tests has its own, for a port stays free until somebody has started."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = range(15000 + number, 32000, processes)
    begin = random.randrange(len(own))  # of two runs at once on one machine
    while True:
        yield from own[begin:]
        yield from own[:begin]


_PORTS = _ports()


def free_port() -> int:
    """A port that nobody listens on, nor will: of this run of tests."""
    while True:
        port = next(_PORTS)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def until(happened: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for something to become true and give it; fails with `what` after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        found = happened()
        if found:
            return found
        assert time.monotonic() < end, f"did not happen within {patience} s: {what}"
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


HEAD = """
Hostname = mx.quillon.test
PidFile = quillon.pid
SpoolBase = spool
Workers = {workers}
ec_logger "main" {{
  mainlog = log/mainlog.ec
  rejectlog = log/rejectlog.ec
  paniclog = log/paniclog.ec
  jsonlog = log/events.json
}}
"""


class Server:
    """`config` goes behind a common head. `port` is for the configuration to use."""

    def __init__(self, folder: Path, config: str, *, workers: int = 1) -> None:
        self.folder = folder
        self.file = folder / "ecelerity.conf"
        self.output = folder / "output"
        self._process: BaseProcess | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(config, workers=workers)

    def configure(self, config: str, *, workers: int = 1) -> None:
        self.file.write_text(HEAD.format(workers=workers) + config)

    def start(self) -> Server:
        self.output.touch()
        offset = self.output.stat().st_size
        self._process = warm.start(["serve", "-c", str(self.file)], self.output)
        until(lambda: "ready:" in self.said(offset) or self.process.exitcode is not None, "start")
        assert self.process.exitcode is None, self.said(offset)
        return self

    @property
    def process(self) -> BaseProcess:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self.process.pid is not None
        return self.process.pid

    def said(self, offset: int = 0) -> str:
        return self.output.read_bytes()[offset:].decode()

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return self.children("quillon:w")

    def children(self, name: str) -> list[int]:
        """Process ids of the supervisor's children whose name begins so."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        found = []
        for pid in path.read_text().split():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if Path(f"/proc/{pid}/comm").read_text().startswith(name):
                    found.append(int(pid))
        return found

    def reload(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        status = self.ended(60)
        self._process = None
        return status

    def ended(self, patience: float = PATIENCE) -> int:
        """Wait for its end; gives the exit status."""
        self.process.join(patience)
        assert self.process.exitcode is not None, f"it has not ended within {patience} s"
        return self.process.exitcode

    def kill(self) -> None:
        """kill -9 of all its processes, workers first."""
        for pid in [*self.workers(), self.pid]:
            os.kill(pid, signal.SIGKILL)
        self.ended(10)
        self._process = None

    def log(self, name: str) -> list[str]:
        file = self.folder / "log" / name
        return file.read_text().splitlines() if file.exists() else []

    def events(self, kind: str) -> list[dict[str, Any]]:
        try:
            text = (self.folder / "log" / "events.json").read_text()
        except FileNotFoundError:
            return []
        rows = [json.loads(line) for line in text.split("\n")[:-1]]  # what is behind the last end is being written
        return [row for row in rows if row["event"] == kind]

    def spooled(self) -> list[tuple[Message, bytes]]:
        """What the spool holds, in both its tiers, with bodies."""
        spool = Spool(self.folder / "spool")
        return [(found.message, spool.body(found)) for found in spool.messages(Wanted())]

    def wait_attempts(self, *recipients: str, patience: float = PATIENCE) -> dict[str, dict[str, Any]]:
        """Wait for an attempt for each recipient; the first of each, by recipient."""

        def found() -> dict[str, dict[str, Any]] | None:
            first: dict[str, dict[str, Any]] = {}
            for event in self.events("attempt"):
                first.setdefault(event["recipient"], event)
            return first if first.keys() >= set(recipients) else None

        rows: dict[str, dict[str, Any]] = until(found, f"attempts for {recipients}; output: {self.said()}", patience)
        return rows

    def wait_events(self, kind: str, count: int = 1, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """Wait for so many events of a kind."""
        return list(
            until(
                lambda: rows if len(rows := self.events(kind)) >= count else None,
                f"{count} events {kind}; output: {self.said()}",
                patience,
            )
        )
