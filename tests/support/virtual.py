"""An event loop whose time passes as fast as nothing happens: days of retries in milliseconds."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Selector(selectors.SelectSelector):
    """Sleeps by putting the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """No file descriptor ever becomes ready here."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


class VirtualClock:
    """The clock of a virtual loop, and chance that can be repeated."""

    def __init__(self, loop: VirtualLoop, seed: int = 0) -> None:
        self._loop = loop
        self._random = random.Random(seed)

    def now(self) -> float:
        return self._loop.time()

    def shuffle(self, items: list[str]) -> None:
        self._random.shuffle(items)


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, and fail for whatever a callback raised."""
    defects: list[dict[str, Any]] = []
    loop = VirtualLoop()
    loop.set_exception_handler(lambda _, context: defects.append(context))
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()
    assert not defects, defects
