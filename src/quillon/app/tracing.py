"""The console's commands about traces of sessions. Shell."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quillon.listener.recorder import name_in, open_new
from quillon.log.trace import SessionFilter, Tracer
from quillon.mail import shown
from quillon.mail.event import Notice
from quillon.mail.message import MessageId
from quillon.queue.selection import only, options, seconds

if TYPE_CHECKING:
    from quillon.app.worker import Worker

USAGE = (
    "trace smtp add [--in|--out] [--peer IP] [--domain D] [--address A] [--binding B] [--message ID] [--for TIME]"
    " [--file NAME]"
)
HOUR = 3600.0
LONGEST = 7 * 86400.0
MOST_OCTETS = 1 << 30  # of a file
_WAYS = ("in", "out")
_VALUES = ("peer", "domain", "address", "binding", "message", "for", "file")
Rows = list[Any]


class Tracing:
    """The traces of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._functions: dict[str, Callable[[list[str], int], Rows]] = {
            "trace smtp add": self._add,
            "trace smtp list": self._list,
            "trace smtp show": self._show,
            "trace smtp remove": self._remove,
        }

    def knows(self, command: str) -> bool:
        """Whether a command is about traces."""
        return command in self._functions

    def carry_out(self, command: str, words: list[str], who: str, number: int) -> Rows:
        """What comes of a command; `number` is that of a new trace. Raises ValueError, OSError."""
        rows = self._functions[command](words, number)
        if rows and command in ("trace smtp add", "trace smtp remove"):
            text = f"console: {who}: {' '.join([command, *words])}: #{rows[0]['number']}"
            self._worker.log(Notice(self._worker.clock.now(), shown.line(text)))
        return rows

    def _add(self, words: list[str], number: int) -> Rows:
        given = _read(words)
        wanted = _wanted(given)
        length = min(seconds(given["for"]), LONGEST) if "for" in given else HOUR
        file = self._file(given["file"]) if "file" in given else None
        until = self._worker.clock.now() + length
        try:
            self._worker.tracers.add(Tracer(number, " ".join(words), wanted, until, file))
        except ValueError:
            if file is not None:
                file.close()
            raise
        return [{"number": number, "until": until}]

    def _file(self, name: str) -> _File:
        folder = self._worker.config.node().record_folder
        if not folder:
            raise ValueError("nothing may be written: set Record_Folder to the folder that traces go to")
        return _File(open_new(folder, name_in(folder, name)))

    def _list(self, _words: list[str], _number: int) -> Rows:
        return [
            {
                "number": one.number,
                "wanted": one.words,
                "until": one.until,
                "sessions": one.sessions,
                "lines": one.count,
            }
            for one in self._worker.tracers.current()
        ]

    def _show(self, words: list[str], _number: int) -> Rows:
        """`N [AFTER]`: lines behind those that are known, `AFTER` has the last one of each worker as `0:12,1:7`."""
        if len(words) not in (1, 2) or not words[0].isdecimal():
            raise ValueError("trace smtp show N [AFTER]")
        tracer = self._worker.tracers.of(int(words[0]))
        if tracer is None:
            return []
        after = _known(words[1] if len(words) == 2 else "").get(self._worker.number, 0)
        lines = tracer.after(after)
        lost = lines[0].number - after - 1 if lines else 0
        head: Rows = [{"worker": self._worker.number, "lost": lost}]
        return [*head, *([self._worker.number, *line] for line in lines)]

    def _remove(self, words: list[str], _number: int) -> Rows:
        word = only(words, "trace smtp remove N")
        if not word.isdecimal():
            raise ValueError(f"{word}: a number is wanted")
        return [{"number": int(word)}] if self._worker.tracers.remove(int(word)) else []


class _File:
    """Lines of a trace on disk; several workers write into one file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, line: str) -> None:
        """Raises OSError, also where the file has become too large."""
        if os.fstat(self._descriptor).st_size >= MOST_OCTETS:
            raise OSError(f"its file has {MOST_OCTETS >> 20} MiB, and may not have more")
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        os.close(self._descriptor)


def _read(words: list[str]) -> dict[str, str]:
    """Options and their values; the manual's form `B D FILE` is one of them. Raises ValueError."""
    if len(words) == 3 and not words[0].startswith("--"):
        binding, domain, file = ("" if word == "*" else word for word in words)
        given = {"way": "out", "binding": binding, "domain": domain, "file": file}
        return {name: value for name, value in given.items() if value}
    found, rest = options(words, _VALUES, _WAYS)
    if rest:
        raise ValueError(f"{rest[0]}: not understood; write it so: {USAGE}")
    ways = [name for name in _WAYS if found.pop(name, False)]
    if len(ways) > 1:
        raise ValueError("--out stands twice, or against another one")
    return {**{name: str(value) for name, value in found.items()}, "way": "".join(ways)}


def _wanted(given: dict[str, str]) -> SessionFilter:
    """Raises ValueError."""
    peer, message = given.get("peer"), given.get("message")
    return SessionFilter(
        way=given.get("way", ""),
        peer=ipaddress.ip_network(peer, strict=False) if peer else None,
        binding=given.get("binding", ""),
        domain=given.get("domain", "").lower().rstrip("."),
        address=given.get("address", ""),
        message=str(MessageId.parse(message)) if message else "",
    )


def _known(text: str) -> dict[int, int]:
    """Raises ValueError."""
    found: dict[int, int] = {}
    for part in filter(None, text.split(",")):
        worker, _, number = part.partition(":")
        if not (worker.isdecimal() and number.isdecimal()):
            raise ValueError(f"{part}: write it so: 0:12,1:7")
        found[int(worker)] = int(number)
    return found
