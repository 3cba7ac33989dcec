"""Who guesses passwords: failed authentications of each client, how long an answer waits, and who may not try any more.

Workers tell each other of failures, so that a client gains nothing by connections to all of them.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from quillon.config.settings import ReceptionSettings

MAX_CLIENTS = 50_000  # whose failures are remembered
LONGEST_DELAY = 30.0  # seconds


def _nobody(_client: str) -> None:
    """There are no other workers."""


class FailedLogins:
    """`now` gives seconds, `tell` is told of each failure here: the client, for `heard` of other workers."""

    def __init__(self, now: Callable[[], float], tell: Callable[[str], None] = _nobody) -> None:
        self._now = now
        self._tell = tell
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def blocked(self, settings: ReceptionSettings, ip: str) -> bool:
        """Whether a client has failed so often lately that it may not try now."""
        limit = settings.auth_failure_limit
        return bool(limit) and len(self._recent(settings, ip)) >= limit

    def attempted(self, settings: ReceptionSettings, ip: str) -> None:
        """Count an attempt as failed until it has passed: those under way at the same time count too."""
        self._failures[client_of(ip)] = self._recent(settings, ip)
        self.heard(client_of(ip))

    def passed(self, ip: str) -> None:
        """An attempt has not failed after all."""
        times = self._failures.get(client_of(ip))
        if times:
            times.pop()

    def failed(self, ip: str) -> None:
        """An attempt, which has been counted, has failed indeed."""
        self._tell(client_of(ip))

    def heard(self, client: str) -> None:
        """One more failure of a client, here or in another worker."""
        self._failures.setdefault(client, []).append(self._now())
        self._failures.move_to_end(client)
        while len(self._failures) > MAX_CLIENTS:
            self._failures.popitem(last=False)

    def delay(self, settings: ReceptionSettings, ip: str) -> float:
        """Seconds that the answer to a failure is to wait, twice as many with each one more."""
        recent = self._recent(settings, ip)
        return min(settings.auth_failure_delay * 2.0 ** min(len(recent) - 1, 10), LONGEST_DELAY)

    def _recent(self, settings: ReceptionSettings, ip: str) -> list[float]:
        since = self._now() - settings.auth_failure_window
        return [time for time in self._failures.get(client_of(ip), ()) if time > since]


def client_of(ip: str) -> str:
    """Whose failures count together: an IPv4 address, or the network of an IPv6 one, which has addresses to spare."""
    address = ipaddress.ip_address(ip)
    return ip if address.version == 4 else str(ipaddress.ip_network(f"{ip}/64", strict=False))
