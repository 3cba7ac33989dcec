"""Turns: no client holds the others, however much it has sent.

Work that is done when its octets arrive runs at once, as long as it is short. A session with more to do than fits into
its slice of time waits in a queue with the others of its kind; the queue gets a share of each round of the event loop.
An honest client's command therefore waits for a round, whatever number of clients have pipelined how much.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

SLICE = 0.001  # seconds that one session works before others get their turn
SHARE = 0.005  # seconds of one round of the loop that sessions in the queue, or one piece of long work, get


class Taker(Protocol):
    def take_turn(self) -> None:
        """Go on with what is left to do, for a slice."""


class Turns:
    """The queue of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Taker] = deque()
        self._known: set[Taker] = set()
        self._scheduled = False

    def slice_ends(self) -> float:
        """When a slice that begins now is over, for `over`."""
        return time.perf_counter() + SLICE

    def over(self, end: float) -> bool:
        """Whether a slice is over."""
        return time.perf_counter() >= end

    def ask(self, taker: Taker) -> None:
        """Put a session at the end of the queue, where it stands once."""
        if taker not in self._known:
            self._known.add(taker)
            self._waiting.append(taker)
            self._soon()

    def waits(self, taker: Taker) -> bool:
        """Whether a session is in the queue."""
        return taker in self._known

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._scheduled = False
        end = time.perf_counter() + SHARE
        while self._waiting and time.perf_counter() < end:
            taker = self._waiting.popleft()
            self._known.discard(taker)
            try:
                taker.take_turn()
            except Exception as defect:
                context = {"message": "turn", "exception": defect}
                asyncio.get_running_loop().call_exception_handler(context)
        if self._waiting:
            self._soon()


class Stint:
    """What one piece of long work gets of a round."""

    def __init__(self) -> None:
        self._end = time.perf_counter() + SHARE

    def over(self) -> bool:
        """Whether it is used up."""
        return time.perf_counter() >= self._end

    async def pause(self) -> None:
        """Let others have a round."""
        await asyncio.sleep(0)
        self._end = time.perf_counter() + SHARE
