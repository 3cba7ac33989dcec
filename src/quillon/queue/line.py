"""A line of waiting things that takes little memory: a server may have a hundred thousand of them, most of them short.
A `collections.deque` takes 760 octets when it is empty. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_WASTE = 32  # places in front that are free before they are given back


class Line(Generic[T]):
    """First in, first out, with a way to the head."""

    __slots__ = ("_items", "_start")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._start = 0  # what is before it has left

    def __len__(self) -> int:
        return len(self._items) - self._start

    def __iter__(self) -> Iterator[T]:
        for index in range(self._start, len(self._items)):
            yield self._items[index]

    def __getitem__(self, index: int) -> T:
        """`index` counts from the head, or with -1 is the end."""
        return self._items[index if index < 0 else self._start + index]

    def append(self, item: T) -> None:
        self._items.append(item)

    def push(self, item: T) -> None:
        """To the head."""
        if self._start:
            self._start -= 1
            self._items[self._start] = item
        else:
            self._items.insert(0, item)

    def remove(self, index: int) -> None:
        """Take out what stands at `index` from the head."""
        if index:
            del self._items[self._start + index]
            return
        self._items[self._start] = None  # type: ignore[assignment]
        self._start += 1
        if self._start >= _WASTE and self._start * 2 >= len(self._items):
            del self._items[: self._start]
            self._start = 0
        elif self._start == len(self._items):
            self.clear()

    def clear(self) -> None:
        self._items.clear()
        self._start = 0
