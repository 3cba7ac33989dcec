"""`msys.audit` and `msys.audit_series`: what has happened in the last windows of time, by address or key.

Counts are of this worker. A series keeps addresses as they are; a question may sum up a block of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quillon.lua.msys.api import Api
from quillon.lua.msys.vctx import peer_block

MAX_KEYS = 200_000  # of one series


@dataclass
class Series:
    """`interval` seconds a window, `windows` of them; `kind` is cidr, cidr_ipv6 or string."""

    kind: str
    interval: float
    windows: int
    now: Callable[[], float]
    counts: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, key: str, amount: float) -> None:
        """Raises ValueError for a key that is no address in a series of them."""
        window = int(self.now() // self.interval)
        rows = self.counts.setdefault(self._key(key), {})
        rows[window] = rows.get(window, 0) + amount
        oldest = window - self.windows
        for old in [number for number in rows if number <= oldest]:
            del rows[old]
        if len(self.counts) > MAX_KEYS:
            self._forget(oldest)

    def _forget(self, oldest: int) -> None:
        """Drop keys without a window that counts; if all count, those that came first."""
        for key in [key for key, rows in self.counts.items() if max(rows, default=0) <= oldest]:
            del self.counts[key]
        while len(self.counts) > MAX_KEYS:
            del self.counts[next(iter(self.counts))]

    def _key(self, key: str) -> str:
        if self.kind == "string":
            return key
        address = ipaddress.ip_address(key.partition("/")[0])
        if address.version != (6 if self.kind == "cidr_ipv6" else 4):
            raise ValueError(f"{key} does not fit a series of kind {self.kind}")
        return str(address)

    def count(self, key: str, start: int, end: int) -> float:
        """The sum of windows `start` to `end`, 0 the current one; of a block all its addresses."""
        current = int(self.now() // self.interval)
        wanted = range(current - max(end, start), current - min(start, end) + 1)
        if self.kind != "string" and "/" in key:
            block = ipaddress.ip_network(key, strict=False)
            if block.num_addresses > 1:
                rows = [row for ip, row in self.counts.items() if ipaddress.ip_address(ip) in block]
                return sum(row.get(window, 0) for row in rows for window in wanted)
        row = self.counts.get(self._key(key), {})
        return sum(row.get(window, 0) for window in wanted)


def numbers(options: Any) -> tuple[int, int]:
    """startv and endv of an options table."""
    given = options if isinstance(options, dict) else {}
    return int(given.get("startv", 0)), int(given.get("endv", 0))


def register(api: Api) -> None:
    all_series: dict[str, Series] = api.environment.shared.setdefault("series", {})

    def series(name: str) -> Series:
        if name not in all_series:
            raise ValueError(f"there is no audit series {name!r}; define it in init")
        return all_series[name]

    def key_of(found: Series, given: Any) -> str:
        if hasattr(given, "call"):  # the ac of a session
            given = peer_block(given, "")
        if found.kind == "string":
            if given is None:
                raise ValueError("a string series needs a key")
            return str(given)
        text = "" if given is None else str(given)
        return text if text and not text.startswith("/") else peer_block(api.session_call(), text)

    def option(options: Any, name: str) -> Any:
        return options.get(name) if isinstance(options, dict) else options

    @api.function("msys.audit_series.define")
    def define(name: str, kind: str, interval: float, windows: int, options: Any = None) -> None:
        """A series of `windows` windows of `interval` seconds; kind is cidr, cidr_ipv6 or string."""
        if kind not in ("cidr", "cidr_ipv6", "string") or interval <= 0 or windows < 1:
            raise ValueError("audit_series.define takes a name, cidr, cidr_ipv6 or string, seconds, and windows")
        known = all_series.get(name)
        if known is None or (known.kind, known.interval, known.windows) != (kind, interval, windows):
            all_series[name] = Series(kind, float(interval), int(windows), api.environment.now)

    @api.function("msys.audit_series.add")
    def add(name: str, options: Any = None) -> None:
        """Add `count` (1) under `key`; for addresses the client's where none is given."""
        found = series(name)
        amount = options.get("count", 1) if isinstance(options, dict) else 1
        found.add(key_of(found, option(options, "key")), amount)

    @api.function("msys.audit_series.count")
    def count(name: str, options: Any = None) -> float:
        """The sum under `key` over the windows `startv` to `endv`; 0 is the current one."""
        found = series(name)
        return found.count(key_of(found, option(options, "key")), *numbers(options))

    @api.function("msys.audit_series.remove_item")
    def remove(name: str, key: Any = None) -> None:
        """Forget a key."""
        found = series(name)
        found.counts.pop(key_of(found, key), None)

    _register_monitors(api, all_series)


EVENTS = ("connections", "receptions", "rejections")


def _register_monitors(api: Api, all_series: dict[str, Series]) -> None:
    for seconds, windows in api.environment.monitors:
        for event in EVENTS:
            for kind in ("cidr", "cidr_ipv6"):
                name = f"\0{event} {seconds},{windows} {kind}"
                all_series.setdefault(name, Series(kind, seconds, windows, api.environment.now))

    def counted(event: str, monitor: str, options: Any) -> float:
        block = options.get("cidr") if isinstance(options, dict) else options
        key = peer_block(api.session_call(), str(block or ""))
        kind = "cidr_ipv6" if ":" in key else "cidr"
        found = all_series.get(f"\0{event} {monitor.replace(' ', '')} {kind}")
        if found is None:
            raise ValueError(f'there is no monitor {monitor!r}: inbound_audit {{ monitors = ( "{monitor}" ) }}')
        return found.count(key, *numbers(options))

    @api.function("msys.audit.connections")
    def connections(monitor: str, options: Any = None) -> float:
        """Connections of an address block in the windows of a monitor such as "60,1"."""
        return counted("connections", monitor, options)

    @api.function("msys.audit.receptions")
    def receptions(monitor: str, options: Any = None) -> float:
        """Messages received."""
        return counted("receptions", monitor, options)

    @api.function("msys.audit.rejections")
    def rejections(monitor: str, options: Any = None) -> float:
        """Refusals."""
        return counted("rejections", monitor, options)

    @api.function("msys.audit.inbound_session_count")
    def session_count(block: str | None = None, service: str | None = None) -> int:
        """Open sessions of an address block."""
        return api.environment.sessions(service or "SMTP", peer_block(api.session_call(), block or ""))


def note(shared: dict[str, Any], event: str, ip: str) -> None:
    """Count something that a client did, in every monitor there is."""
    kind = "cidr_ipv6" if ":" in ip else "cidr"
    for name, found in shared.get("series", {}).items():
        if name.startswith(f"\0{event} ") and name.endswith(f" {kind}"):
            found.add(ip, 1)
