"""`msys.gauge_cache`: counters by key that go when they have not changed for a while; of this worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from quillon.lua.msys.api import Api


@dataclass
class Gauge:
    """`ttl` in seconds after the last change; the longest unchanged goes first where there are too many."""

    size: int
    ttl: float
    now: Callable[[], float]
    values: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)

    def get(self, key: str) -> int:
        until, value = self.values.get(key, (0.0, 0))
        return value if until > self.now() else 0

    def change(self, key: str, step: int) -> int:
        now = self.now()
        value = self.get(key) + step
        self.values[key] = (now + self.ttl, value)
        self.values.move_to_end(key)
        while self.values and (len(self.values) > self.size or next(iter(self.values.values()))[0] <= now):
            self.values.popitem(last=False)
        return value


def register(api: Api) -> None:
    gauges: dict[str, Gauge] = api.environment.shared.setdefault("gauges", {})

    def gauge(name: str) -> Gauge:
        if name not in gauges:
            raise ValueError(f"there is no gauge cache {name!r}; define it in init")
        return gauges[name]

    @api.function("msys.gauge_cache.define")
    def define(name: str, maxelems: int, ttl: float, replicated: bool = False) -> None:
        """A cache of at most `maxelems` keys that are kept `ttl` seconds after their last change."""
        if maxelems < 1 or ttl <= 0:
            raise ValueError("a gauge cache takes a number of keys and seconds")
        known = gauges.get(name)
        if known is None:
            gauges[name] = Gauge(int(maxelems), float(ttl), api.environment.now)
        else:
            known.size, known.ttl = int(maxelems), float(ttl)

    @api.function("msys.gauge_cache.get")
    def get(name: str, key: str) -> int:
        """The value of a key, 0 where there is none."""
        return gauge(name).get(str(key))

    @api.function("msys.gauge_cache.inc")
    def inc(name: str, key: str) -> int:
        """Add one."""
        return gauge(name).change(str(key), 1)

    @api.function("msys.gauge_cache.dec")
    def dec(name: str, key: str) -> int:
        """Take one away."""
        return gauge(name).change(str(key), -1)

    @api.function("msys.gauge_cache.remove_item")
    def remove(name: str, key: str) -> None:
        """Forget a key."""
        gauge(name).values.pop(str(key), None)
