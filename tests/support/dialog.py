"""SMTP dialogs as data: `C:` lines go in, `S:` lines have to come out. Replayed against the machine alone.

`! key = value` changes a reception setting, `! tls` ends a handshake, `S: 250...` matches by prefix. A `C>` line goes
in together with the line behind it, as pipelining does.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

from quillon.lab.sink import reception_defaults
from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.smtp import events as smtp
from quillon.smtp.server import ServerSession


class Dialog:
    """Plays one file. Recipients at refused.test are refused; everything else a policy could say is yes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = reception_defaults(smtp_extensions=("ENHANCEDSTATUSCODES", "STARTTLS"))
        self.session: ServerSession | None = None
        self.output: list[str] = []
        self.messages: list[bytes] = []
        self._data: list[bytes] = []

    def play(self) -> None:
        pending = b""
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            kind, _, text = line.partition(" ")
            where = f"{self.path.name}:{number}"
            if kind == "!" and text == "tls":
                self._started().tls_started()
            elif kind == "!":
                key, _, value = text.partition(" = ")
                self.settings = dataclasses.replace(self.settings, **{key: ast.literal_eval(value)})
            elif kind in ("C:", "C>"):
                pending += text.encode("latin-1").decode("unicode_escape").encode("latin-1") + b"\r\n"
                if kind == "C:":
                    self._feed(pending)
                    pending = b""
            elif kind == "R:":
                self._feed(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))
            elif kind == "S:":
                self._expect(text, where)
            elif kind == "CLOSED":
                assert self._started().closing, f"{where}: the session is not closed"
            else:
                assert not line or line.startswith("#"), f"{where}: what is {line!r}?"
        assert not self.output, f"{self.path.name}: unexpected {self.output}"

    def _started(self) -> ServerSession:
        if self.session is None:
            self.session = ServerSession(self.settings, "mx.test", "192.0.2.1", can_starttls=True)
            self.session.greet(Reply(220, "", "mx.test ESMTP"))
            self._collect()
        return self.session

    def _feed(self, data: bytes) -> None:
        session = self._started()
        session.receive(data)
        while (event := session.next_event()) is not smtp.NEED_DATA and event is not smtp.PAUSED:
            if isinstance(event, smtp.Data):
                self._data.append(event.data)
                if not event.last:
                    continue
                if event.fault is None:
                    self.messages.append(b"".join(self._data))
                self._data = []
                session.respond(event.fault)
            elif isinstance(event, smtp.RcptTo) and event.mailbox.domain == "refused.test":
                session.respond(replies.RELAYING_DENIED)
            else:
                session.respond(None)
        self._collect()

    def _collect(self) -> None:
        assert self.session is not None
        self.output += self.session.data_to_send().decode("ascii").splitlines()

    def _expect(self, text: str, where: str) -> None:
        self._started()
        assert self.output, f"{where}: nothing was said, expected {text!r}"
        said = self.output.pop(0)
        good = said.startswith(text.removesuffix("...")) if text.endswith("...") else said == text
        assert good, f"{where}: said {said!r}, expected {text!r}"
