"""A host whose every word is written down: for what no honest server says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Script = Callable[["Session"], None]


class Session:
    """One connection, in the hands of a script. What the client says is in `said`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.said: list[bytes] = []
        self._reader = sock.makefile("rb")

    def say(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\r\n")

    def hear(self) -> bytes:
        """The next line; empty at the end."""
        line = self._reader.readline()
        self.said.append(line)
        return line

    def mail(self) -> None:
        """As a server would until the mail data begin, without pipelining."""
        self.say("220 peer.test ESMTP")
        self.hear()
        self.say("250 peer.test")
        for reply in ("250 ok", "250 ok", "354 go on"):
            self.hear()
            self.say(reply)

    def reset(self) -> None:
        """End with RST, as a process that dies with octets unread does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self._reader.close()  # it holds the descriptor too
        self.sock.close()


class Scripted:
    """Listens from the start; every connection gets `script` on a thread of its own."""

    def __init__(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sessions: list[Session] = []
        self._script = script
        self._server = socket.create_server((host, port))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                session = Session(sock)
                self.sessions.append(session)
                threading.Thread(target=self._run, args=(session,), daemon=True).start()

    def _run(self, session: Session) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.closing(session):
            session.sock.settimeout(30)
            self._script(session)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
