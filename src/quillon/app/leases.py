"""Leases of connections beyond the workers' even shares, as the supervisor gives them. Pure.

A lease belongs to the worker that has it until it gives it back, or ends. If all are out when another one asks, the
holders are told, and it is served before them.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple


class LeaseWord(NamedTuple):
    """What is to be said to a worker: `leased` or `wanted`, and the name of the limit."""

    worker: int
    do: str
    name: str


@dataclass
class _Lent:
    most: int = 0
    holders: Counter[int] = field(default_factory=Counter)
    waiting: deque[int] = field(default_factory=deque)


class Leases:
    """Workers are known by their process ids."""

    def __init__(self) -> None:
        self._lent: dict[str, _Lent] = {}

    def ask(self, worker: int, name: str, most: int) -> list[LeaseWord]:
        """A worker wants one of `most` leases."""
        lent = self._lent.setdefault(name, _Lent())
        lent.most = most
        if worker not in lent.waiting:
            lent.waiting.append(worker)
        words = self._serve(name, lent)
        if lent.waiting:
            words += [LeaseWord(holder, "wanted", name) for holder in lent.holders if holder != worker]
        return words

    def give_back(self, worker: int, name: str) -> list[LeaseWord]:
        """A worker does not need a lease any more."""
        lent = self._lent.get(name)
        if lent is None or not lent.holders[worker]:
            return []
        lent.holders[worker] -= 1
        return self._serve(name, lent)

    def gone(self, worker: int) -> list[LeaseWord]:
        """A worker has ended: what it had is free."""
        words: list[LeaseWord] = []
        for name, lent in list(self._lent.items()):
            del lent.holders[worker]
            if worker in lent.waiting:
                lent.waiting.remove(worker)
            words += self._serve(name, lent)
        return words

    def _serve(self, name: str, lent: _Lent) -> list[LeaseWord]:
        words = []
        lent.holders += Counter()  # drops those that hold none
        while lent.waiting and lent.holders.total() < lent.most:
            worker = lent.waiting.popleft()
            lent.holders[worker] += 1
            words.append(LeaseWord(worker, "leased", name))
            if lent.waiting:
                words.append(LeaseWord(worker, "wanted", name))  # for its turn it has it, and no longer
        if not lent.waiting and not lent.holders:
            del self._lent[name]
        return words
