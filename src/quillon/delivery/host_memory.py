"""What deliveries have found out about hosts, for a while: which rest after a failure, which sites have not answered
for how long, how many recipients hosts take at once, and how many connections stand to them. Pure: `now` comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from quillon.config.settings import DeliverySettings
from quillon.delivery.route import Host
from quillon.queue.limit import Limit

MOST = 4096  # facts that are kept before those that are over are dropped
RECIPIENTS_SECONDS = 3600.0  # for which a host's limit of recipients is believed
SILENCE_SECONDS = 86400.0  # after which an attempt at which no host answered has nothing to do with one before

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Fading(Generic[K, V]):
    """Facts, each of which is believed until a time of its own. As many are kept as are believed, and a few more."""

    def __init__(self) -> None:
        self._facts: dict[K, tuple[V, float]] = {}
        self._most = MOST

    def put(self, key: K, value: V, until: float, now: float) -> None:
        if len(self._facts) >= self._most:
            self._facts = {key: fact for key, fact in self._facts.items() if fact[1] > now}
            self._most = max(MOST, 2 * len(self._facts))
        self._facts[key] = (value, until)

    def get(self, key: K, now: float) -> V | None:
        """What is known; None if nothing is, or no longer."""
        fact = self._facts.get(key)
        return fact[0] if fact is not None and fact[1] > now else None

    def forget(self, key: K) -> None:
        self._facts.pop(key, None)

    def clear(self) -> None:
        self._facts.clear()


class Silence(NamedTuple):
    """No host of a site has answered at so many attempts in a row, the first of which began then."""

    attempts: int
    since: float


class HostMemory:
    """A host rests for everybody, or for one who asks, where it has failed only with his TLS."""

    def __init__(self) -> None:
        self._resting: Fading[tuple[str, int, Hashable], float] = Fading()
        self._recipients: Fading[str, int] = Fading()
        self._silent: Fading[Hashable, Silence] = Fading()
        self._limits: dict[str, Limit] = {}
        self._standing: Counter[str] = Counter()

    def forget_rests(self) -> None:
        """Every host may be tried again."""
        self._resting.clear()

    def rest(self, host: Host, seconds: int, now: float, whose: Hashable = None) -> None:
        """Have a host left alone, by everybody or by one."""
        self._resting.put((host.ip, host.port, whose), now + seconds, now + seconds, now)

    def rests_until(self, host: Host, whose: Hashable, now: float) -> float:
        """When a host may be tried again; 0 where nothing is known against it."""
        found = (self._resting.get((host.ip, host.port, who), now) for who in (None, whose))
        return max((until for until in found if until is not None), default=0.0)

    def answered(self, site: Hashable) -> None:
        """A host of a site has answered, whatever it said."""
        self._silent.forget(site)

    def silent(self, site: Hashable, began: float, now: float, settings: DeliverySettings) -> bool:
        """An attempt that began at a time has ended without an answer of any host. True if that has lasted so long
        that what waits is to be delayed (options mx_failures_to_delay and connect_timeout_to_delay)."""
        known = self._silent.get(site, now) or Silence(0, began)
        silence = Silence(known.attempts + 1, known.since)
        self._silent.put(site, silence, now + SILENCE_SECONDS, now)
        often = 0 < settings.mx_failures_to_delay <= silence.attempts
        return often or now - silence.since >= settings.connect_timeout_to_delay

    def takes_only(self, ip: str, recipients: int, now: float) -> None:
        """A host has refused further recipients of a transaction after so many."""
        self._recipients.put(ip, recipients, now + RECIPIENTS_SECONDS, now)

    def recipients(self, ip: str, limit: int, now: float) -> int:
        """How many recipients a transaction with a host may have; `limit` is the configured number, 0 for none."""
        known = self._recipients.get(ip, now)
        if known is None:
            return limit
        return min(known, limit) if limit else known

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
