"""`msys.counter`: numbers under a path, of this worker; they outlive a reload. The console shows and changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quillon.lua.msys.api import Api

MAX_COUNTERS = 100_000
LARGEST = 1 << 62  # of all workers' sum, too, Lua makes a number
_RELAXED = 1  # msys.counter.RELAXED; here each counter is exact, whatever was asked for


@dataclass
class Tally:
    """One counter; `since` is when it was made or set to 0, in seconds since the epoch."""

    value: int
    since: float
    relaxed: bool = False


@dataclass
class Counters:
    """All of a worker."""

    now: Callable[[], float]
    tallies: dict[str, Tally] = field(default_factory=dict)

    def open(self, path: Any, *, relaxed: bool = False) -> str:
        """A counter by its path, made if it is not there. Raises ValueError."""
        text = str(path)
        if text in self.tallies:
            return text
        if not text.startswith("/"):
            raise ValueError(f"{text!r} is no path of a counter: it begins with a slash")
        if len(self.tallies) >= MAX_COUNTERS:
            raise ValueError(f"there are {MAX_COUNTERS} counters already")
        self.tallies[text] = Tally(0, self.now(), relaxed)
        return text

    def add(self, path: Any, delta: int) -> int:
        """Gives what it is then. Raises ValueError."""
        tally = self.tallies[self.open(path)]
        if abs(tally.value + delta) >= LARGEST:
            raise ValueError(f"{path}: a counter has 63 bits")
        tally.value += delta
        return tally.value

    def read(self, path: Any) -> int:
        """Its value; 0 for one that is not there."""
        tally = self.tallies.get(str(path))
        return tally.value if tally is not None else 0

    def reset(self, path: Any) -> None:
        """Set to 0. Raises ValueError."""
        tally = self.tallies[self.open(path)]
        tally.value, tally.since = 0, self.now()

    def unlink(self, path: Any) -> bool:
        """Forget it; whether it was there."""
        return self.tallies.pop(str(path), None) is not None


def of(shared: dict[str, Any], now: Callable[[], float]) -> Counters:
    """Those of a worker, which its policies share."""
    found: Counters = shared.setdefault("counters", Counters(now))
    return found


def register(api: Api) -> None:
    counters = of(api.environment.shared, api.environment.now)

    @api.function("msys.counter.open")
    def open_counter(path: str, semantics: int | None = None) -> str:
        """A counter by its path, made if it is not there."""
        return counters.open(path, relaxed=semantics == _RELAXED)

    @api.function("msys.counter.inc")
    def inc(path: Any) -> int:
        """Add one."""
        return counters.add(path, 1)

    @api.function("msys.counter.add")
    def add(path: Any, delta: int) -> int:
        """Add a number."""
        return counters.add(path, int(delta))

    @api.function("msys.counter.read")
    def read(path: Any) -> int:
        """Its value; 0 for one that is not there."""
        return counters.read(path)

    @api.function("msys.counter.reset")
    def reset(path: Any) -> None:
        """Set to 0."""
        counters.reset(path)

    @api.function("msys.counter.unlink")
    def unlink(path: Any) -> bool:
        """Forget it."""
        return counters.unlink(path)
