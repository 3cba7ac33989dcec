"""A bounded memory of answers."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Cache(Generic[K, T]):
    """Of two generations: when the younger is full, the older goes. Whoever asks for ever new names does not fill the
    memory, and what is asked for often stays."""

    SIZE = 65536

    def __init__(self) -> None:
        self._young: dict[K, T] = {}
        self._old: dict[K, T] = {}

    def get(self, key: K) -> T | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self[key] = found
        return found

    def __setitem__(self, key: K, value: T) -> None:
        if len(self._young) >= self.SIZE:
            self._young, self._old = {}, self._young
        self._young[key] = value
