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
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from quillon import __version__
from quillon.app.commands import ERROR, Command, find, help_text
from quillon.mail.shown import printable

MAX_LINE = 4096
MAX_CLIENTS = 32
PATIENCE = 5.0  # seconds for a client to say its line, and for the workers to answer
LOCAL_PATIENCE = 300.0  # seconds for what the supervisor does itself, which always answers


@dataclass
class _Client:
    sock: socket.socket
    ends_at: float
    line: bytes = b""
    command: Command | None = None
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
        self._selector.unregister(client.sock)
        command, arguments = find(words or ["help"])
        client.command = command
        if command.name == "help":
            self._end(number, help_text())
        elif command.name == "version":
            self._end(number, f"quillon {__version__}\n")
        elif command.name == "pid":
            self._end(number, f"{os.getpid()}\n")
        elif command.name in self._local:
            client.ends_at = time.monotonic() + LOCAL_PATIENCE
            self._local[command.name](lambda text: self._end(number, text + "\n") if number in self._clients else None)
        else:
            client.ends_at = time.monotonic() + PATIENCE
            request = {"do": "console", "id": number, "command": command.name, "words": arguments}
            client.waiting = self._ask(request)
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

    def _text(self, client: _Client) -> str:
        """The answer out of the rows of all workers. What goes wrong in it is an answer too, not the server's end."""
        assert client.command is not None
        assert client.command.render is not None
        errors = [row["error"] for row in client.rows if isinstance(row, dict) and row.keys() == {"error"}]
        if errors and len(errors) == len(client.rows):
            return "".join(f"{ERROR}{text}\n" for text in dict.fromkeys(errors))
        try:
            return client.command.render(client.rows)
        except Exception as defect:
            return f"{ERROR}{client.command.name}: unexpected {defect!r}\n"
