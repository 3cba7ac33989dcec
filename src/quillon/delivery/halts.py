"""When nothing may leave for a destination: quiet hours of the configuration, what an operator has suspended, and what
is wrong with this server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from quillon.mail.event import Event, Notice
from quillon.queue.curfew import Curfew, transitions
from quillon.queue.destination import Key
from quillon.queue.suspension import Suspensions

SOON = 2.0  # seconds until it is looked again whether this server is well


class Halt(NamedTuple):
    """Nothing may leave before a time."""

    until: float
    why: str


class Halts:
    """`log` takes events; `trouble` tells what is wrong with this server, "" for nothing; None where nothing can be."""

    def __init__(
        self,
        curfew: Curfew,
        suspensions: Suspensions,
        log: Callable[[Event], object],
        trouble: Callable[[], str] | None = None,
    ) -> None:
        self.suspensions = suspensions
        self._trouble = trouble
        self._log = log
        self.reconfigure(curfew)

    def reconfigure(self, curfew: Curfew) -> None:
        """Other quiet hours hold."""
        self._curfew = curfew
        self._engaged: set[int] = set()  # rules that hold
        self._told_until = 0.0

    def of(self, key: Key, now: float) -> Halt | None:
        """What keeps a destination from sending, None if nothing does."""
        if self._trouble is not None and (trouble := self._trouble()):
            return Halt(now + SOON, trouble)
        suspension = self.suspensions.of(key, now)
        if suspension is not None:
            return Halt(suspension.until, suspension.words)
        until = self._curfew.until(key, now)
        return Halt(until, "curfew") if until else None

    def tell(self, now: float) -> None:
        """A notice for each rule of the curfew that begins or ends to hold, which they do at full minutes."""
        if not self._curfew.rules or now < self._told_until:
            return
        self._told_until = _next_minute(now)
        for number, engaged in transitions(self._curfew, self._engaged, now):
            self._engaged ^= {number}
            state = "engaged" if engaged else "lifted"
            self._log(Notice(now, f"curfew: rule #{number} {state} ({self._curfew.rules[number].text})"))

    def due(self, now: float) -> float | None:
        """When `tell` is to be called again; None for never."""
        return _next_minute(now) if self._curfew.rules else None


def _next_minute(now: float) -> float:
    return now - now % 60 + 60
