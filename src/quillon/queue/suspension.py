"""What an operator has suspended while the server runs: a domain, a binding or both, with a reason and an end. Pure.

Mail only waits: it is accepted as before, and its expiry goes on. What the configuration suspends (Suspend_Delivery) is
not in here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from quillon.queue.destination import Key

FOREVER = 253402300799.0  # the last second of the year 9999


class SuspensionError(ValueError):
    """What was written down of suspensions cannot be read."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """`domain` and `binding` are empty for any. `by` is who ordered it; times are seconds since the epoch, `until` is
    `FOREVER` where only a command ends it."""

    domain: str
    binding: str
    why: str
    by: str
    since: float
    until: float

    def concerns(self, key: Key) -> bool:
        """Whether a destination is suspended by it."""
        return (not self.binding or key.leaves_from(self.binding)) and self.domain in ("", key.domain, key.via)

    def row(self) -> dict[str, str | float | None]:
        """As JSON has it, with null for an end that only a command makes."""
        until = self.until if self.until < FOREVER else None
        row: dict[str, str | float | None] = {}
        row |= {"domain": self.domain, "binding": self.binding, "reason": self.why, "by": self.by, "since": self.since}
        return {**row, "until": until}

    @property
    def words(self) -> str:
        """Why nothing leaves."""
        return f"suspended by {self.by}" + (f": {self.why}" if self.why else "")


class Suspensions:
    """All that hold. One of the same domain and binding takes the place of another."""

    def __init__(self, found: Iterable[Suspension] = ()) -> None:
        self._all = {(one.domain, one.binding): one for one in found}

    def __bool__(self) -> bool:
        return bool(self._all)

    def of(self, key: Key, now: float) -> Suspension | None:
        """What suspends a destination, the one that lasts longest; None if nothing does."""
        if not self._all:
            return None
        found = [one for one in self._all.values() if one.until > now and one.concerns(key)]
        return max(found, key=lambda one: one.until, default=None)

    def current(self, now: float) -> list[Suspension]:
        """Those that are not over, by domain."""
        self._all = {key: one for key, one in self._all.items() if one.until > now}
        return sorted(self._all.values(), key=lambda one: (one.domain, one.binding))

    def add(self, one: Suspension) -> None:
        self._all[one.domain, one.binding] = one

    def names(self, domain: str) -> bool:
        """Whether a domain is suspended by its name, from whichever binding."""
        return any(domain == name for name, _ in self._all)

    def get(self, domain: str, binding: str) -> Suspension | None:
        """The one of exactly this domain and binding."""
        return self._all.get((domain, binding))

    def remove(self, domain: str, binding: str) -> None:
        """End one, if it is there."""
        self._all.pop((domain, binding), None)

    def dump(self, now: float) -> str:
        """As text, for the next life."""
        return json.dumps([asdict(one) for one in self.current(now)], indent=1)


def parse(text: str) -> Suspensions:
    """What `dump` made. Raises SuspensionError."""
    try:
        return Suspensions(map(_one, json.loads(text)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SuspensionError(f"cannot be read: {error}") from None


def _one(row: dict[str, Any]) -> Suspension:
    words = {name: row[name] for name in ("domain", "binding", "why", "by")}
    times = {name: float(row[name]) for name in ("since", "until")}
    if not all(isinstance(value, str) for value in words.values()):
        raise ValueError("a text is expected")
    if not all(0 <= value <= FOREVER for value in times.values()):
        raise ValueError("a time is expected")
    return Suspension(words["domain"], words["binding"], words["why"], words["by"], times["since"], times["until"])
