"""Sessions as they go, line by line, for an operator who looks on (console `trace smtp`).

A tracer says which sessions are meant: by direction, peer, binding, domain, address or message. Of a session that may
be meant lines are kept back until a domain, an address or a message shows that it is; what AUTH hides never gets here.
Nothing is done for sessions that began while there was no tracer.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import count
from typing import NamedTuple, Protocol

from quillon.mail import shown
from quillon.mail.event import TlsFacts
from quillon.mail.reply import Reply
from quillon.tls.certificate import Certificate
from quillon.tls.records import Side

KEPT = 5000  # lines of a tracer
AHEAD = 400  # lines of a session that are kept back
MOST = 10  # tracers at a time
LINE = 1000  # characters
_PATH = re.compile(r"(?:MAIL FROM|RCPT TO):\s*<([^>]*)>", re.IGNORECASE)


class SessionFilter(NamedTuple):
    """Which sessions: what is named has to hold all together. `domain` and `address` are patterns with `*` and `?`, of
    domains and whole addresses in MAIL and RCPT, or of the domain that a connection is made for; `message` is the
    number of a message or a reception."""

    way: str = ""
    peer: IPv4Network | IPv6Network | None = None
    binding: str = ""
    domain: str = ""
    address: str = ""
    message: str = ""


class TraceLine(NamedTuple):
    """`number` counts the lines of a tracer, `session` the sessions of a process."""

    number: int
    time: float
    session: int
    way: str
    peer: str
    text: str


class TraceFile(Protocol):
    """Where the lines of a tracer go."""

    def write(self, line: str) -> None:
        """Raises OSError, which ends the tracer."""

    def close(self) -> None:
        """It ends."""


class Tracer:
    """`words` are those of the order, `until` is when it ends. `file` takes each line as text."""

    def __init__(
        self,
        number: int,
        words: str,
        wanted: SessionFilter,
        until: float,
        file: TraceFile | None = None,
    ) -> None:
        self.number = number
        self.words = words
        self.wanted = wanted
        self.until = until
        self.sessions = 0
        self.count = 0  # lines
        self.lines: deque[TraceLine] = deque(maxlen=KEPT)
        self.domain = _pattern(wanted.domain)
        self.address = _pattern(wanted.address)
        self.file = file

    def add(self, when: float, session: int, way: str, peer: str, text: str) -> None:
        """Raises OSError."""
        self.count += 1
        line = TraceLine(self.count, when, session, way, peer, text)
        self.lines.append(line)
        if self.file is not None:
            self.file.write(as_text(line) + "\n")

    def after(self, number: int) -> list[TraceLine]:
        """The lines behind one, as far as they are kept."""
        return [line for line in self.lines if line.number > number]


class Tracers:
    """Those of a process; `now` tells the time."""

    def __init__(self, now: Callable[[], float], report: Callable[[str], None]) -> None:
        self._now = now
        self._report = report
        self._by_number: dict[int, Tracer] = {}
        self._sessions = count(1)

    def __bool__(self) -> bool:
        return bool(self._by_number)

    def add(self, tracer: Tracer) -> None:
        """Raises ValueError."""
        if len(self.current()) >= MOST:
            raise ValueError(f"there are {MOST} tracers already; trace smtp remove N ends one")
        if tracer.number in self._by_number:
            raise ValueError(f"there is a tracer #{tracer.number} already; say it again")
        self._by_number[tracer.number] = tracer

    def remove(self, number: int) -> bool:
        """Whether there was one."""
        tracer = self._by_number.pop(number, None)
        if tracer is not None and tracer.file is not None:
            with contextlib.suppress(OSError):  # whatever a disk has to say at the end, no session hears it
                tracer.file.close()
        return tracer is not None

    def current(self) -> list[Tracer]:
        """Those that have not ended."""
        now = self._now()
        for tracer in [tracer for tracer in self._by_number.values() if tracer.until <= now]:
            self.remove(tracer.number)
        return list(self._by_number.values())

    def of(self, number: int) -> Tracer | None:
        return next((tracer for tracer in self.current() if tracer.number == number), None)

    def begin(
        self, way: str, ip: str, peer: str, domain: str = "", leaves_from: Callable[[str], bool] = lambda _: False
    ) -> SessionTrace | None:
        """A session begins; None where nobody wants it. `domain` is what a connection is made for, `leaves_from` tells
        whether a name is that of its binding."""
        meant = [tracer for tracer in self.current() if _may_be(tracer.wanted, way, ip, leaves_from)]
        if not meant:
            return None
        trace = SessionTrace(self, meant, next(self._sessions), way, shown.line(peer, shown.NAME))
        if domain:
            trace.domain(domain)
        return trace

    def add_line(self, tracer: Tracer, when: float, session: int, way: str, peer: str, text: str) -> None:
        """A line of a session, while its tracer is there."""
        if self._by_number.get(tracer.number) is not tracer:
            return
        if tracer.until <= when:
            self.remove(tracer.number)
            return
        try:
            tracer.add(when, session, way, peer, text)
        except OSError as error:
            self.remove(tracer.number)  # a full disk ends the tracer, not the session
            self._report(f"trace smtp: tracer #{tracer.number} has ended: {error.strerror or error}")

    def now(self) -> float:
        return self._now()


class SessionTrace:
    """One session, of which somebody may want to know."""

    def __init__(self, tracers: Tracers, candidates: Sequence[Tracer], number: int, way: str, peer: str) -> None:
        self._tracers = tracers
        self._number = number
        self._way = way
        self._peer = peer
        self._ahead: deque[tuple[float, str]] = deque(maxlen=AHEAD)
        self._seen: dict[int, set[str]] = {}  # what has been found of a candidate's conditions
        self._meant: list[Tracer] = []
        self._candidates = list(candidates)
        self._sides: dict[bool, Side] = {}
        self._look()

    def heard(self, line: str) -> None:
        """A command of the client, without what AUTH hides."""
        self._command("<" if self._way == "in" else ">", line)

    def said(self, reply: Reply) -> None:
        """A reply of the server."""
        sign = ">" if self._way == "in" else "<"
        lines = reply.encode().decode("ascii", "replace").splitlines()
        for line in lines:
            self.note(f"{sign} {line}")

    def note(self, text: str) -> None:
        """What happened beside commands and replies."""
        now, line = self._tracers.now(), shown.line(text, LINE)
        if self._candidates:
            self._ahead.append((now, line))
        for tracer in self._meant:
            self._tracers.add_line(tracer, now, self._number, self._way, self._peer, line)

    def octets(self, octets: bytes, ours: bool) -> None:
        """A piece of a TLS handshake."""
        side = self._sides.setdefault(ours, Side())
        for line in side.feed(octets):
            self.note(f"{'>' if ours else '<'} TLS {line}")

    def certificates(self, chain: Sequence[bytes]) -> None:
        """Those that the other side has sent, its own first, in DER."""
        for depth, der in enumerate(chain):
            self.note(f"TLS certificate {depth}: {_certificate(Certificate(der))}")

    def secured(self, facts: TlsFacts) -> None:
        """What came of a handshake, for the better or the worse."""
        if not facts.protocol:
            self.note(f"TLS failed: {facts.cause}: {facts.detail}")
            return
        resumed = ", a resumed session" if facts.resumed else ""
        self.note(f"TLS stands: {facts.protocol} {facts.cipher}, {facts.bits} bits, group {facts.group}{resumed}")
        if facts.cause:
            self.note(f"TLS certificate does not verify: {facts.cause}: {facts.detail}")
        elif facts.verified is not None:
            self.note(f"TLS certificate verified: {facts.level}{f', {facts.matched}' if facts.matched else ''}")

    def domain(self, name: str) -> None:
        """What a connection is made for."""
        for tracer in list(self._candidates):
            if tracer.domain is not None and tracer.domain.match(name):
                self._found(tracer, "domain")
        self._look()

    def messages(self, numbers: Iterable[str]) -> None:
        """The messages and receptions that come next."""
        numbers = list(dict.fromkeys(numbers))
        for tracer in list(self._candidates):
            if tracer.wanted.message in numbers:
                self._found(tracer, "message")
        self._look()
        self.note(f"message {', '.join(numbers)}")

    def _command(self, sign: str, line: str) -> None:
        if self._candidates and (match := _PATH.match(line)) is not None:
            address = match[1]
            for tracer in list(self._candidates):
                if tracer.domain is not None and tracer.domain.match(address.rpartition("@")[2]):
                    self._found(tracer, "domain")
                if tracer.address is not None and tracer.address.match(address):
                    self._found(tracer, "address")
            self._look()
        self.note(f"{sign} {line}")

    def _found(self, tracer: Tracer, condition: str) -> None:
        self._seen.setdefault(tracer.number, set()).add(condition)

    def _look(self) -> None:
        """Whether a candidate is meant by now: then it has what was kept back."""
        for tracer in list(self._candidates):
            wanted = tracer.wanted
            conditions = {name for name in ("domain", "address", "message") if getattr(wanted, name)}
            if conditions <= self._seen.get(tracer.number, set()):
                self._candidates.remove(tracer)
                self._meant.append(tracer)
                tracer.sessions += 1
                for when, text in self._ahead:
                    self._tracers.add_line(tracer, when, self._number, self._way, self._peer, text)
        if not self._candidates:
            self._ahead.clear()


def as_text(line: TraceLine) -> str:
    """As a file has it."""
    return f"{line.time:.6f} {line.session} {line.way} {line.peer} {line.text}"


def _may_be(wanted: SessionFilter, way: str, ip: str, leaves_from: Callable[[str], bool]) -> bool:
    """Whether a session can be meant, by what is known at its begin."""
    if wanted.way not in ("", way) or (wanted.binding and not leaves_from(wanted.binding)):
        return False
    if wanted.message and way == "in":
        return False  # it has no number before it is accepted
    return wanted.peer is None or ip_address(ip) in wanted.peer


def _pattern(text: str) -> re.Pattern[str] | None:
    return re.compile(translate(text), re.IGNORECASE) if text else None


def _certificate(certificate: Certificate) -> str:
    names, left = shown.joined(certificate.alternative_names, 300, ", ")
    more = f" and {left} more" if left else ""
    until = time.strftime("%Y-%m-%d", time.gmtime(certificate.ends)) if certificate.ends else "unreadable"
    subject, issuer = (shown.cut(name or "unreadable", 200) for name in (certificate.subject, certificate.issuer))
    return f"{subject}; names {names or 'none'}{more}; by {issuer}; until {until}; SHA-256 {certificate.sha256}"
