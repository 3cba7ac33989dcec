"""Long work in slices: over many items, with a round of the event loop for others whenever a share of it is used up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from quillon.net.turns import Stint

T = TypeVar("T")
R = TypeVar("R")
FEW = 50  # items that are looked at together


async def each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What a function makes of each of many items."""
    return [function(item) async for item in in_slices(items)]


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, one after the other."""
    stint = Stint()
    for item in items:
        yield item
        if stint.over():
            await stint.pause()
