"""What deliveries have found out about hosts, for a while: which rest after a failure, how many recipients they take at
once, and how many connections stand to them. Pure: `now` comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from quillon.delivery.route import Host
from quillon.queue.limit import Limit

MOST = 4096  # hosts that something is known of before what is over is dropped
RECIPIENTS_SECONDS = 3600.0  # for which a host's limit of recipients is believed


class HostMemory:
    """A host rests for everybody, or for one who asks, where it has failed only with his TLS."""

    def __init__(self) -> None:
        self._resting: dict[tuple[str, int, Hashable], float] = {}
        self._recipients: dict[str, tuple[int, float]] = {}
        self._limits: dict[str, Limit] = {}
        self._standing: Counter[str] = Counter()

    def forget_rests(self) -> None:
        """Every host may be tried again."""
        self._resting.clear()

    def rest(self, host: Host, seconds: int, now: float, whose: Hashable = None) -> None:
        """Have a host left alone, by everybody or by one."""
        if len(self._resting) >= MOST:
            self._resting = {key: until for key, until in self._resting.items() if until > now}
        self._resting[(host.ip, host.port, whose)] = now + seconds

    def rests_until(self, host: Host, whose: Hashable) -> float:
        """When a host may be tried again; 0 where nothing is known against it."""
        key = (host.ip, host.port)
        return max(self._resting.get((*key, None), 0.0), self._resting.get((*key, whose), 0.0))

    def takes_only(self, ip: str, recipients: int, now: float) -> None:
        """A host has refused further recipients of a transaction after so many."""
        if len(self._recipients) >= MOST:
            self._recipients = {key: known for key, known in self._recipients.items() if known[1] > now}
        self._recipients[ip] = (recipients, now + RECIPIENTS_SECONDS)

    def recipients(self, ip: str, limit: int, now: float) -> int:
        """How many recipients a transaction with a host may have; `limit` is the configured number, 0 for none."""
        known = self._recipients.get(ip)
        if known is None or known[1] <= now:
            return limit
        return min(known[0], limit) if limit else known[0]

    # connections ----------------------------------------------------------------------------------------------

    def limit(self, name: str) -> Limit:
        """How many connections there may be to a host of a name; made if it is new, and forgotten with the last."""
        found = self._limits.get(name)
        if found is None:
            found = self._limits[name] = Limit(f"host {name}")
        return found

    def stands(self, peer: str) -> bool:
        """Whether a connection to an address stands."""
        return peer in self._standing

    def opening(self, name: str) -> None:
        self.limit(name).used += 1

    def opened(self, peer: str) -> None:
        self._standing[peer] += 1

    def closed(self, name: str, peer: str = "") -> Limit:
        """A connection is gone; `peer` is given if it stood."""
        if peer:
            self._standing[peer] -= 1
            if not self._standing[peer]:
                del self._standing[peer]
        limit = self.limit(name)
        limit.used -= 1
        if not limit.used and not limit.held and not limit.leases and not limit.asked:
            del self._limits[name]
        return limit
