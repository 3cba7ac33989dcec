"""Time and randomness; no other module asks the system for either.

`Deadlines` is one coarse timer for many connections: each sets its own deadline as often as it likes, at the price of
one assignment, and a sweep a few times a second finds those that have passed.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final, Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch."""

    def shuffle(self, items: list[str]) -> None:
        """Put into random order, in place."""


_NOW: Final = time.time  # found at once in compiled code, and not by two names


class SystemClock:
    def now(self) -> float:
        return _NOW()

    def shuffle(self, items: list[str]) -> None:
        random.shuffle(items)


class Expiring(Protocol):
    """Something with a deadline in seconds since the epoch; 0 is none."""

    deadline: float

    def expired(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Sweeps its members every `interval` seconds."""

    def __init__(self, clock: Clock, interval: float = 0.25) -> None:
        self._clock = clock
        self._interval = interval
        self._members: set[Expiring] = set()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(self._interval, self._sweep)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def add(self, member: Expiring) -> None:
        self._members.add(member)

    def discard(self, member: Expiring) -> None:
        self._members.discard(member)

    def _sweep(self) -> None:
        now = self._clock.now()
        self.start()
        for member in [m for m in self._members if 0 < m.deadline <= now]:
            member.deadline = 0.0
            try:
                member.expired()
            except Exception as defect:
                # one connection's trouble must not take the time limits of all others away
                context = {"message": "deadline", "exception": defect}
                asyncio.get_running_loop().call_exception_handler(context)
