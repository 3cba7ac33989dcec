"""The console: commands on the sockets of Control_Listener, answered by the supervisor or by all workers together.

One command a connection: a line comes in, text goes out, the connection is closed. Who may connect is for the mode of
the socket to say. `Console` lives in the supervisor's loop and never waits for a client or a worker.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from quillon import __version__
from quillon.log.metrics import render
from quillon.mail.shown import printable

MAX_LINE = 4096
MAX_CLIENTS = 32
PATIENCE = 5.0  # seconds for a client to say its line, and for the workers to answer
LOCAL_PATIENCE = 300.0  # seconds for what the supervisor does itself, which always answers

ERROR = "error: "  # how an answer begins that is none
HELP = """help                what can be asked
version             the version of Quillon
pid                 process id of the supervisor
metrics             counters, in the text format of Prometheus
reopen logs         open the log files anew, as after a rotation
config reload       read the configuration again, as SIGHUP does
tls show cache      the TLS contexts of all workers
tls flush cache     load them anew from their files; sessions that stand go on
tls rekey           new keys for session tickets; a session made before is not resumed
record start NAME   write sessions to a file of Record_Folder, for replay; with bodies at the end whole messages
spool show          room on the spool's disk, and what waits to be written
record stop         write no more
and what scripts have registered with msys.registerControl
"""
_OF_WORKERS = ("metrics", "spool show", "tls show cache", "tls flush cache", "tls rekey")


@dataclass
class _Client:
    sock: socket.socket
    ends_at: float
    line: bytes = b""
    command: str = ""
    waiting: set[int] = field(default_factory=set)
    rows: list[Any] = field(default_factory=list)


class Console:
    """`ask` puts a request to every worker and gives their process ids; `local` are the supervisor's own commands, each
    given what takes its answer."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        ask: Callable[[dict[str, Any]], set[int]],
        local: Mapping[str, Callable[[Callable[[str], None]], None]],
    ) -> None:
        self._selector = selector
        self._ask = ask
        self._local = local
        self._clients: dict[int, _Client] = {}
        self._listening: dict[str, socket.socket] = {}
        self._number = 0
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def listen(self, new: Mapping[str, socket.socket], wanted: Set[str]) -> None:
        """Take over newly bound sockets by name; close those whose name is not wanted any more."""
        for name in self._listening.keys() - wanted:
            self._drop(self._listening.pop(name), name)
        for name, sock in new.items():
            self._listening[name] = sock
            self._selector.register(sock, selectors.EVENT_READ, self._accept)

    @property
    def names(self) -> set[str]:
        return set(self._listening)

    def close(self) -> None:
        """Stop listening and hang up."""
        self.listen({}, set())
        for number in list(self._clients):
            self._end(number, "")

    def close_inherited(self) -> None:
        """In a worker: let go of the descriptors, and of nothing else."""
        for sock in [*self._listening.values(), *(client.sock for client in self._clients.values())]:
            sock.close()

    def _drop(self, sock: socket.socket, path: str) -> None:
        self._selector.unregister(sock)
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(path)

    @property
    def deadline(self) -> float:
        """Monotonic time of the next thing to do; 0 for none."""
        return min((client.ends_at for client in self._clients.values()), default=0.0)

    def expire(self) -> None:
        """Answer for workers that did not, and hang up on clients that say nothing."""
        now = time.monotonic()
        for number, client in list(self._clients.items()):
            if client.ends_at <= now:
                late = f"{len(client.waiting)} workers did not answer\n" if client.waiting else ""
                self._end(number, self._text(client) + late if client.command else "")

    # clients --------------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except OSError:
            self._turn_away(listening)
            return
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        self._number += 1
        number = self._number
        self._clients[number] = _Client(sock, time.monotonic() + PATIENCE)
        self._selector.register(sock, selectors.EVENT_READ, lambda _: self._read(number))

    def _turn_away(self, listening: socket.socket) -> None:
        """No descriptor is left for a client: with the spare one it is hung up on, else it would wake us for ever."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with contextlib.suppress(OSError):
            listening.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, number: int) -> None:
        client = self._clients.get(number)
        if client is None:
            return  # ended in this very turn
        try:
            data = client.sock.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            self._end(number, "")
            return
        client.line += data
        if b"\n" in client.line or not data:
            self._command(number, client)
        elif len(client.line) > MAX_LINE:
            self._end(number, f"{ERROR}the command is too long\n")

    def _command(self, number: int, client: _Client) -> None:
        words = client.line.split(b"\n")[0].decode("utf-8", "replace").split()
        command = " ".join(words).lower()
        self._selector.unregister(client.sock)
        client.command = command or "help"
        if not command or command == "help":
            self._end(number, HELP)
        elif command == "version":
            self._end(number, f"quillon {__version__}\n")
        elif command == "pid":
            self._end(number, f"{os.getpid()}\n")
        elif command in self._local:
            client.ends_at = time.monotonic() + LOCAL_PATIENCE
            self._local[command](lambda text: self._end(number, text + "\n") if number in self._clients else None)
        else:
            # what is none of the server's own may be one that a script has registered
            known = command if command in _OF_WORKERS or words[0] == "record" else "control"
            client.command = known.partition(" ")[0] if words[0] == "record" else known
            client.ends_at = time.monotonic() + PATIENCE
            client.waiting = self._ask({"do": "console", "id": number, "command": client.command, "words": words})
            if not client.waiting:
                self._end(number, f"{ERROR}no worker is running\n")

    def answered(self, pid: int, message: Mapping[str, Any]) -> None:
        """A part of a worker's answer; `last` tells that there is no more."""
        client = self._clients.get(message["id"])
        if client is None:
            return
        client.rows += message["rows"]
        if message["last"]:
            client.waiting.discard(pid)
            if not client.waiting:
                self._end(message["id"], self._text(client))

    def gone(self, pid: int) -> None:
        """A worker has ended: nobody waits for it any more."""
        for number, client in list(self._clients.items()):
            if pid in client.waiting:
                client.waiting.discard(pid)
                if not client.waiting:
                    self._end(number, self._text(client))

    def _end(self, number: int, text: str) -> None:
        client = self._clients.pop(number)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        # a console reads what it has asked for; one that does not is cut off, for nobody here waits
        client.sock.settimeout(0.5)
        shown = "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))
        with contextlib.suppress(OSError):
            client.sock.sendall(shown.encode())
        client.sock.close()

    # texts ----------------------------------------------------------------------------------------------------

    def _text(self, client: _Client) -> str:
        if client.command == "metrics":
            counts: Counter[str] = Counter()
            for series, count in client.rows:
                counts[series] += count
            return render(counts)
        if client.command == "tls flush cache":
            return "Cache flush request submitted.\n"
        if client.command == "tls rekey":
            return "Rekey request submitted.\n"
        if client.command == "spool show":
            return "".join(f"{row}\n" for row in sorted(map(str, client.rows)))
        if client.command in ("control", "record"):
            return _said(client.rows)
        return cache_text(client.rows)


def _said(rows: list[dict[str, Any]]) -> str:
    """What workers said, each text once; errors of all of them where none has done anything."""
    good = list(dict.fromkeys(row["said"] for row in rows if "said" in row))
    if good:
        return "".join(text.rstrip("\n") + "\n" for text in good if text)
    return "".join(f"{ERROR}{text}\n" for text in dict.fromkeys(row["error"] for row in rows))


def cache_text(rows: list[dict[str, Any]]) -> str:
    """`tls show cache` as the manual prints it, contexts of all workers with equal settings as one."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = repr((row["kind"], sorted(row["settings"].items())))
        found = merged.setdefault(key, {**row, "in_use": 0})
        found["in_use"] += row["in_use"]
        found["age"] = max(found["age"], row["age"])
    out = []
    for number, row in enumerate(merged.values(), 1):
        lines = [("age", f"{int(row['age'])} seconds old"), ("in use by", f"{row['in_use']} sessions")]
        lines += list(row["settings"].items())
        out.append(f"{number:4}) {row['kind']} context")
        out += [f"{label:>18}: {value}" for label, value in lines]
    return "\n".join(out or ["no context is cached"]) + "\n"
