"""How many connections a destination gets: more with each success, fewer with each failure. Pure.

The window begins small and grows by one with each message that is delivered, until something fails; from then on it
grows by one for as many deliveries as it has connections (Postfix, SCHEDULER_README: feedback of 1/concurrency). A host
that takes no further connection while others stand fixes it at their number for a while: what is refused would not be
taken a moment later either. The options bound it.
"""

from __future__ import annotations

INITIAL = 5
REFUSED_SECONDS = 60.0  # for which a window stays where a host has refused a further connection


class Window:
    """`limit` is the most that the configuration allows; the window itself never is below one."""

    __slots__ = ("_held_until", "_size", "_steady")

    def __init__(self, *, whole: int = 0) -> None:
        """`whole` begins with so many connections at once (connection_allocation_aggressiveness = high)."""
        self._size = float(max(whole, INITIAL))
        self._steady = False
        self._held_until = 0.0

    def allowed(self, limit: int) -> int:
        """Connections that may stand or be opened."""
        return min(int(self._size), limit)

    def succeeded(self, now: float, limit: int) -> None:
        """A message was delivered."""
        if now >= self._held_until and self._size < limit:
            self._size += 1.0 / self._size if self._steady else 1.0

    def refused(self, standing: int, now: float) -> None:
        """No further connection was taken while so many stand."""
        self._size = float(max(standing, 1))
        self._steady = True
        self._held_until = now + REFUSED_SECONDS

    def failed(self) -> None:
        """A connection broke, or took no message."""
        self._size = max(self._size - 1.0, 1.0)
        self._steady = True
