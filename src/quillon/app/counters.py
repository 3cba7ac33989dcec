"""The console's commands about the counters of scripts (`msys.counter`). Shell.

Each worker counts for itself, and the console shows the sum; what is added is added to one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quillon.lua.msys import counter
from quillon.queue.selection import only

if TYPE_CHECKING:
    from quillon.app.worker import Worker

MOST_LISTED = 10_000
Rows = list[Any]


class ScriptCounters:
    """The answers of one worker: `functions` are those of commands, and raise ValueError."""

    def __init__(self, worker: Worker, shared: dict[str, Any]) -> None:
        self._worker = worker
        self._counters = counter.of(shared, worker.clock.now)
        self.functions: dict[str, Callable[[list[str]], Rows]] = {
            "counter list": self._list,
            "counter add": self._add,
            "counter increment": self._increment,
            "counter reset": self._reset,
            "counter unlink": self._unlink,
        }

    def _list(self, words: list[str]) -> Rows:
        """`[PREFIX]`"""
        if len(words) > 1:
            raise ValueError("counter list [PREFIX]")
        paths = [path for path in self._counters.tallies if not words or path.startswith(words[0])]
        if len(paths) > MOST_LISTED:
            raise ValueError(f"there are {len(paths)} counters: say how theirs begin, as in `counter list /site/`")
        return [self._row(path) for path in paths]

    def _row(self, path: str) -> dict[str, Any]:
        tally = self._counters.tallies[path]
        return {"counter": path, "value": tally.value, "reset": tally.since, "relaxed": tally.relaxed}

    def _add(self, words: list[str]) -> Rows:
        if len(words) != 2 or not re.fullmatch(r"-?[0-9]{1,18}", words[1]):
            raise ValueError("counter add PATH NUMBER")
        first = self._worker.number == 0
        self._counters.add(words[0], int(words[1]) if first else 0)
        return [{**self._row(words[0]), "added": first}]

    def _increment(self, words: list[str]) -> Rows:
        return self._add([only(words, "counter increment PATH"), "1"])

    def _reset(self, words: list[str]) -> Rows:
        path = only(words, "counter reset PATH")
        if path not in self._counters.tallies:
            return []
        self._counters.reset(path)
        return [self._row(path)]

    def _unlink(self, words: list[str]) -> Rows:
        path = only(words, "counter unlink PATH")
        return [{"counter": path}] if self._counters.unlink(path) else []
