"""Real sessions to a file, so that another configuration can be tried on them: one JSON object a line. Shell.

A session has its addresses and time, and its steps in order: a command with the replies to it, a TLS verdict, an
authentication with its outcome, mail data with its header section, whose body is kept only when asked for. Passwords
and responses of AUTH are never in it. Lines with `dns` hold what was looked up meanwhile.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quillon.mail.reply import Reply
from quillon.policy.environment import Lookup
from quillon.tls.certificate import Certificate
from quillon.tls.verdict import TlsVerdict

VERSION = 1
MAX_BODY = 16 * 2**20  # octets of mail data that are kept

Step = dict[str, Any]


class SessionRecord:
    """One session as it goes on."""

    def __init__(self, remote: str, local: str, listen: str, now: Callable[[], float], *, bodies: bool) -> None:
        self.row: dict[str, Any] = {"quillon": VERSION, "at": now(), "remote": remote, "local": local, "listen": listen}
        self.steps: list[Step] = []
        self.bodies = bodies
        self._now = now
        self._body = bytearray()
        self.row["steps"] = self.steps

    def heard(self, line: str) -> None:
        """A command line, without what AUTH hides."""
        self.steps.append({"at": self._now(), "command": line})

    def said(self, reply: Reply) -> None:
        """A reply to the last step; those before the first are to the connection."""
        if not self.steps:
            self.steps.append({"at": self._now(), "connect": True})
        self.steps[-1].setdefault("replies", []).append(str(reply))

    def tls(self, verdict: TlsVerdict) -> None:
        """A handshake has ended well."""
        self.steps.append({"at": self._now(), "tls": verdict_row(verdict)})

    def authenticated(self, mechanism: str, user: str, status: str) -> None:
        """An exchange is over."""
        self.steps.append({"at": self._now(), "auth": {"mechanism": mechanism, "user": user, "status": status}})

    def data(self, piece: bytes) -> None:
        """A piece of mail data."""
        if len(self._body) < MAX_BODY:
            self._body += piece

    def data_complete(self, size: int) -> None:
        """The last piece has come."""
        data, self._body = bytes(self._body), bytearray()
        end = 2 if data.startswith(b"\r\n") else data.find(b"\r\n\r\n") + 4
        kept = data if self.bodies or end < 4 else data[:end]
        self.steps.append({"at": self._now(), "data": kept.decode("latin-1"), "size": size})

    def context(self, connection: dict[str, str]) -> None:
        """What is known of the connection at its end."""
        self.row["context"] = {key: value for key, value in connection.items() if not key.startswith("#")}


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Recorder:
    """Appends to a file that only the server's user can read. Raises OSError from the start."""

    def __init__(self, folder: str, name: str, now: Callable[[], float], *, bodies: bool) -> None:
        name = name_in(folder, name)
        self.path = f"{folder}/{name}"
        self.bodies = bodies
        self.sessions = 0
        self._now = now
        self._file = open_new(folder, name)

    def begin(self, remote: str, local: str, listen: str) -> SessionRecord:
        return SessionRecord(remote, local, listen, self._now, bodies=self.bodies)

    def finish(self, record: SessionRecord) -> None:
        """Write a session that has ended."""
        self._write(record.row)
        self.sessions += 1

    def looked_up(self, name: str, kind: str, server: str, found: Lookup) -> None:
        """Write an answer of DNS."""
        answer = {"records": found.records, "error": found.error, "status": found.status}
        self._write({"quillon": VERSION, "at": self._now(), "dns": [name, kind, server], "answer": answer})

    def _write(self, row: dict[str, Any]) -> None:
        if self._file >= 0:
            data = (json.dumps(row, separators=(",", ":")) + "\n").encode()
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                self.close()  # a full disk ends the recording, not the sessions

    def close(self) -> None:
        """Write no more."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def name_in(folder: str, name: str) -> str:
    """The name of a file of Record_Folder, which may stand behind its path. Raises OSError for any other."""
    name = name.removeprefix(folder.rstrip("/") + "/")
    if not _NAME.fullmatch(name):
        raise OSError(errno.EACCES, f"recordings are files of Record_Folder, {folder}", name)
    return name


def open_new(folder: str, name: str) -> int:
    """A file of the folder, made here or by another worker, and nobody else's: no link, no device. Raises OSError."""
    Path(folder).mkdir(mode=0o750, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = os.open(name, flags, 0o600, dir_fd=place)
    finally:
        os.close(place)
    state = os.fstat(file)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or state.st_uid != os.geteuid():
        os.close(file)
        raise OSError(errno.EACCES, "it is no file of this server's own", f"{folder}/{name}")
    return file


def verdict_row(verdict: TlsVerdict) -> dict[str, Any]:
    certificate = verdict.certificate
    return {
        "protocol": verdict.protocol,
        "cipher": verdict.cipher,
        "bits": verdict.bits,
        "algorithm_bits": verdict.algorithm_bits,
        "group": verdict.group,
        "certificate": base64.b64encode(certificate.der).decode("ascii") if certificate is not None else None,
        "checked": verdict.checked,
        "errors": [list(error) for error in verdict.errors],
        "sni": verdict.sni,
        "resumed": verdict.resumed,
    }


def verdict_of(row: dict[str, Any]) -> TlsVerdict:
    """Raises KeyError, ValueError, TypeError for what is no verdict."""
    certificate = row["certificate"]
    return TlsVerdict(
        protocol=str(row["protocol"]),
        cipher=str(row["cipher"]),
        bits=int(row["bits"]),
        algorithm_bits=int(row["algorithm_bits"]),
        group=str(row["group"]),
        certificate=Certificate(base64.b64decode(certificate)) if certificate else None,
        checked=bool(row["checked"]),
        errors=tuple((str(cause), int(depth), str(text)) for cause, depth, text in row["errors"]),
        sni=str(row["sni"]),
        resumed=bool(row["resumed"]),
    )
