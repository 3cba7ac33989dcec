"""Quiet hours: when nothing leaves for a binding and a domain (manual, module curfew). Pure.

A schedule file has a rule a line: binding or binding group, domain, on or off, minute, hour, day of month, month, day
of week. `*` stands for any; numbers may be ranges, lists and steps. If both days are restricted, either may match (as
in Vixie cron). Mail only waits: its expiry goes on.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from quillon.queue.destination import Key

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 6))


class ScheduleError(ValueError):
    """A schedule cannot be read. `line` counts from 1."""

    def __init__(self, line: int, words: str) -> None:
        super().__init__(words)
        self.line = line


@dataclass(frozen=True, slots=True)
class Rule:
    """One line that is on. Fields are the numbers that match; `any_day` tells which of the two days are `*`."""

    binding: str
    domain: str
    fields: tuple[frozenset[int], ...]
    any_day: tuple[bool, bool]
    text: str

    def concerns(self, key: Key) -> bool:
        """Whether a destination is under this rule when it is engaged."""
        own = Key(key.binding_group.lower(), key.binding.lower(), key.domain)
        return (self.binding == "*" or own.leaves_from(self.binding)) and self.domain in (
            "*",
            key.domain.lower(),
            key.via.lower(),
        )

    def engaged(self, at: datetime.datetime) -> bool:
        """Whether it holds in the minute of `at`."""
        minute, hour, day, month, weekday = self.fields
        if at.minute not in minute or at.hour not in hour or at.month not in month:
            return False
        of_month, of_week = at.day in day, at.isoweekday() % 7 in weekday
        if not any(self.any_day):
            return of_month or of_week
        return of_month and of_week


@dataclass(frozen=True, slots=True)
class Curfew:
    """The rules of a schedule; `utc` tells the time zone of its numbers, UTC or that of the machine."""

    rules: tuple[Rule, ...] = ()
    utc: bool = True

    def until(self, key: Key, now: float) -> float:
        """The end of this minute if nothing may leave for a destination in it, else 0."""
        if not self.rules:
            return 0.0
        at = self.moment(now)
        if any(rule.concerns(key) and rule.engaged(at) for rule in self.rules):
            return now - now % 60 + 60
        return 0.0

    def moment(self, now: float) -> datetime.datetime:
        """The time by which rules are judged."""
        return datetime.datetime.fromtimestamp(now, datetime.UTC if self.utc else None)


def parse(text: str, *, utc: bool = True) -> Curfew:
    """A schedule file. Raises ScheduleError for the first line that cannot be read: half a schedule is none."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 8:
            raise ScheduleError(
                number, f"{len(words)} fields, where 8 are wanted: binding domain on|off and five of cron"
            )
        if words[2] not in ("on", "off"):
            raise ScheduleError(number, f"{words[2]!r}: the third field is on or off")
        fields = tuple(_numbers(number, *row) for row in zip(words[3:], _FIELDS, strict=True))
        if words[2] == "on":
            any_day = (words[5] == "*", words[7] == "*")
            rules.append(
                Rule(words[0].lower(), words[1].lower(), fields, any_day, f"binding={words[0]} domain={words[1]}")
            )
    return Curfew(tuple(rules), utc)


def _numbers(line: int, text: str, field: tuple[str, int, int]) -> frozenset[int]:
    name, least, most = field
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            low = least if span == "*" else int(first)
            high = most if span == "*" else int(last) if dash else low
            every = int(step) if step else 1
            if not (least <= low <= high <= most and every > 0 and (span == "*" or dash or not step)):
                raise ValueError
        except ValueError:
            raise ScheduleError(
                line, f"{part!r} is no {name}: from {least} to {most}, as 3, 1-5, *, */15 or 0-30/2"
            ) from None
        found.update(range(low, high + 1, every))
    return frozenset(found)


def transitions(curfew: Curfew, engaged: Iterable[int], now: float) -> list[tuple[int, bool]]:
    """Rules, by number, that hold now and did not, or the other way round."""
    before, at = set(engaged), curfew.moment(now)
    return [(n, rule.engaged(at)) for n, rule in enumerate(curfew.rules) if rule.engaged(at) != (n in before)]
