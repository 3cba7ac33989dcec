"""Rates: at most `count` events in `seconds` seconds, spread evenly with a burst of one period.

A counter belongs to the stanza that set the throttle, so all that fall back to it share it (manual, fallback page).
"""

from __future__ import annotations


class Bucket:
    """A token bucket. `count` may be a fraction: a worker's share of the node's rate."""

    def __init__(self, count: float, seconds: float) -> None:
        self._rate = count / seconds
        self._size = max(count, 1.0)
        self._tokens = count  # less than one where a worker's share is: the node's rate holds from the start
        self._at = 0.0

    def reserve(self, now: float) -> float:
        """Take the next token that is not taken yet, and give the time from which it may be used. Whoever has to wait
        for it has it for certain then, so that many who wait do not all come at once."""
        self._fill(now)
        self._tokens -= 1.0
        return now if self._tokens >= 0.0 else now - self._tokens / self._rate

    def _fill(self, now: float) -> None:
        if self._at:
            self._tokens = min(self._size, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = now
