"""Lines to files. Appended with O_APPEND in whole lines, so that several workers share one file; reopened on demand.

Lines of one round of the event loop go out in one write. A file that cannot be written is told of on stderr, once until
it works again: mail goes on, and the operator has to know.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from quillon.config.settings import CustomLoggerSettings, LoggerSettings
from quillon.log import lines
from quillon.log.macros import Template, compile_format, stage_of
from quillon.mail import shown
from quillon.mail.event import Attempted, Authenticated, Authorized, Discarded, Event, Panic, Received, Rejected
from quillon.mail.outcome import Delivered, TransientFailure


def _complain(text: str) -> None:
    """A line on stderr, where there is one that takes it."""
    with contextlib.suppress(OSError):
        print(f"quillon: {shown.line(text, shown.PANIC)}", file=sys.stderr, flush=True)


class LogFile:
    """One file of some kind: main, reject, panic, acct, json or custom. Raises OSError only from `open`.

    Lines that cannot be written are counted, and a mark stands in their place once the file takes lines again.
    """

    def __init__(self, path: str, mode: int, kind: str = "custom", now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._mode = mode
        self._kind = kind
        self._now = now
        self._descriptor = -1
        self._waiting: list[str] = []
        self._complained = False
        self._lost = 0
        self._broken = False  # the last line stands there in part

    def open(self) -> None:
        """Open or reopen, as after a rotation."""
        self.flush()
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, self._mode)
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def add(self, line: str) -> None:
        self._waiting.append(line)

    def flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        if self._descriptor < 0:
            self._lost += len(waiting)
            return
        mark = [lines.lost(self._kind, self._now(), self._lost)] if self._lost else []
        broken = [""] if self._broken else []
        data = "\n".join([*broken, *mark, *waiting, ""]).encode("utf-8", "replace")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            self._complained, self._broken, self._lost = False, False, 0
        except OSError as error:
            whole = data[:written].count(b"\n") - len(broken)
            if whole >= len(mark):
                self._lost, whole = 0, whole - len(mark)
            self._lost += len(waiting) - max(whole, 0)
            if written:
                self._broken = data[written - 1 : written] != b"\n"
            if not self._complained:
                self._complained = True
                _complain(f"cannot write {self.path}: {error.strerror}")


class Loggers:
    """All ec_logger and custom_logger stanzas, whose formats have been tried.

    `schedule` runs a function at the end of the current round of the event loop.
    """

    def __init__(
        self,
        settings: Sequence[LoggerSettings],
        schedule: Callable[[Callable[[], object]], object],
        custom: Sequence[CustomLoggerSettings] = (),
    ) -> None:
        self._settings = tuple(settings)
        self._schedule = schedule
        self._scheduled = False
        self._files: dict[str, LogFile] = {}
        self._by_kind: list[tuple[LoggerSettings, dict[str, LogFile]]] = []
        for logger in self._settings:
            kinds = {
                "main": (logger.mainlog, logger.mainlog_mode),
                "reject": (logger.rejectlog, logger.rejectlog_mode),
                "panic": (logger.paniclog, logger.paniclog_mode),
                "acct": (logger.acctlog, logger.acctlog_log_mode),
                "json": (logger.jsonlog, logger.jsonlog_mode),
            }
            files = {kind: self._file(path, mode, kind) for kind, (path, mode) in kinds.items() if path}
            self._by_kind.append((logger, files))
        self._custom: dict[str, list[tuple[Template, LogFile]]] = {}
        for stanza in custom:
            for log in stanza.logs:
                template = compile_format(log.format, stanza.namespaces, stanza.sanitize)
                self._custom.setdefault(log.stage, []).append((template, self._file(log.path, log.mode)))

    def _file(self, path: str, mode: int, kind: str = "custom") -> LogFile:
        return self._files.setdefault(path, LogFile(path, mode, kind))

    def open(self) -> None:
        """Open or reopen every file. Raises OSError."""
        for file in self._files.values():
            file.open()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    @property
    def heartbeat(self) -> int:
        """The shortest interval between heartbeats; 0 for none."""
        return min((logger.heartbeat for logger in self._settings if logger.heartbeat), default=0)

    def beat(self, now: float) -> None:
        for logger, files in self._by_kind:
            if logger.heartbeat and "main" in files:
                files["main"].add(lines.heartbeat(now))
            if logger.heartbeat and "reject" in files:
                files["reject"].add(lines.reject_heartbeat(now))
        self._soon()

    def log(self, event: Event) -> None:
        text = json_text = None
        for logger, files in self._by_kind:
            if "json" in files:
                json_text = json_text or lines.as_json(event)
                files["json"].add(json_text)
            kind = _wanted(logger, event)
            if kind in files:
                text = text or _render(event)
                files[kind].add(text)
        if self._custom and isinstance(event, Received | Attempted | Rejected):
            for template, file in self._custom.get(stage_of(event), ()):
                file.add(template.line(event))
        if isinstance(event, Panic):
            _complain(event.text)
            self.flush()  # at once, for what follows may be the end
        else:
            self._soon()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.flush)

    def flush(self) -> None:
        self._scheduled = False
        for file in self._files.values():
            file.flush()


def _wanted(logger: LoggerSettings, event: Event) -> str:
    """Which log of a stanza an event goes to; "" for none."""
    if isinstance(event, Received):
        return "main" if logger.log_receptions else ""
    if isinstance(event, Attempted):
        if isinstance(event.outcome, Delivered):
            return "main" if logger.log_deliveries else ""
        transient = isinstance(event.outcome, TransientFailure)
        wanted = logger.log_transient_failures if transient else logger.log_permanent_failures
        return "main" if wanted else ""
    if isinstance(event, Rejected | Discarded):
        return "reject" if logger.log_rejections else ""
    if isinstance(event, Authenticated | Authorized):
        return "acct"
    if isinstance(event, Panic):
        return "panic" if logger.log_errors else ""
    return ""


def _render(event: Event) -> str:
    if isinstance(event, Received):
        return lines.reception(event)
    if isinstance(event, Attempted):
        return lines.attempt(event)
    if isinstance(event, Rejected):
        return lines.rejection(event)
    if isinstance(event, Discarded):
        return lines.discard(event)
    if isinstance(event, Authenticated):
        return lines.authentication(event)
    if isinstance(event, Authorized):
        return lines.authorization(event)
    assert isinstance(event, Panic)
    return lines.panic(event)
