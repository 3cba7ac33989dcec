"""Coroutines that mostly do not wait: run at once, and made a task only where they have to.

A session asks its policy at each command; most answers are there at once. To make a task for each would cost more than
the answer. `start` runs a coroutine up to the place where it first has to wait; only then what is left becomes a task.
A coroutine that is given here may await futures and tasks; `asyncio.timeout` needs a task of its own around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class _Rest:
    """A coroutine that has already been started, and the future that it waits for."""

    def __init__(self, begun: Coroutine[Any, Any, Any], first: Any) -> None:
        self._begun = begun
        self._waits_for = first

    def __await__(self) -> Generator[Any, Any, Any]:
        begun, waits_for = self._begun, self._waits_for
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                begun.close()
                raise
            except BaseException as error:
                try:
                    waits_for = begun.throw(error)
                except StopIteration as end:
                    return end.value
            else:
                try:
                    waits_for = begun.send(sent)
                except StopIteration as end:
                    return end.value


def start(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run as far as it goes without waiting: None if that was all, else the task that does the rest."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    task = asyncio.get_running_loop().create_task(_finish(_Rest(coroutine, waits_for)))
    # one that is cancelled before its first step has not told the coroutine
    task.add_done_callback(lambda _: coroutine.close())
    return task


async def _finish(rest: _Rest) -> None:
    await rest


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that must not wait. Raises RuntimeError if it does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("this may not wait")
