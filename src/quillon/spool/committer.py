"""Writes groups on a thread of its own, one after the other: what comes while one is written goes into the next, so the
price of an fsync is shared by as many as come in its time.

Its user gathers a group on the event loop; `soon` tells that there is one. `take` gives it away, `write` writes it on
the thread and raises where it cannot, `settle` is told on the loop what came of it. `verify` may turn success into
failure.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

INTERVAL = 0.004  # seconds between the beginnings of two writes at least: under load groups grow instead of writes
RETRY = 0.5  # seconds until what failed is tried again

Done = Callable[[Exception | None], None]
Group = TypeVar("Group")


class Committer(Generic[Group]):
    """`name` is the file that it writes, for what it reports; `report` takes a line."""

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[], Group | None],
        write: Callable[[Group], None],
        settle: Callable[[Group, Exception | None], None],
        report: Callable[[str], None],
        verify: Callable[[Group], None] = lambda _: None,
    ) -> None:
        self._verify = verify
        self._name = name
        self._take = take
        self._write = write
        self._settle = settle
        self._report = report
        self._todo: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: threading.Thread | None = None
        self._scheduled = False
        self._stopped = False
        self._begun = 0.0  # when the last write began, in the loop's time
        self.busy = False
        self.failing = ""  # why the last group was not written, until one is

    def start(self) -> None:
        """Called on the event loop that `settle` is to run on."""
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._run, name=f"commit {self._name}", daemon=True)
        self._writer.start()

    async def stop(self) -> None:
        """End the thread, after the group that it writes; what has come since is not taken."""
        self._stopped = True
        self._todo.put(None)
        if self._writer is not None:
            await asyncio.to_thread(self._writer.join)

    def soon(self) -> None:
        """Write at the end of this round of the loop, or when the group before is done."""
        if not self.busy and not self._scheduled and self._loop is not None:
            self._scheduled = True
            wait = self._begun + INTERVAL - self._loop.time()
            if wait > 0:
                self._loop.call_later(wait, self._begin)
            else:
                self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        assert self._loop is not None
        if self.busy or self._stopped or (group := self._take()) is None:
            return
        self.busy = True
        self._begun = self._loop.time()
        self._todo.put(group)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            while (group := self._todo.get()) is not None:
                error: Exception | None = None
                try:
                    self._write(group)
                except Exception as failed:
                    # memory, the disk, a value that cannot be written: the group is over, and is told so
                    error = failed
                self._loop.call_soon_threadsafe(self._finished, group, error)
        except BaseException as error:
            # without a committer this process would take mail and never answer; the supervisor starts another
            print(f"quillon: {self._name}: the committer ended: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    def _finished(self, group: Group, error: Exception | None) -> None:
        self.busy = False
        if error is None:
            try:
                self._verify(group)
            except Exception as failed:
                error = failed
        try:
            self._note(error)
        finally:
            self._settled(group, error)

    def _settled(self, group: Group, error: Exception | None) -> None:
        try:
            self._settle(group, error)
        finally:
            if error is None:
                self.soon()
            else:
                assert self._loop is not None
                self._scheduled = True
                self._loop.call_later(RETRY, self._begin)

    def _note(self, error: Exception | None) -> None:
        """Say once what fails, and once that it works again."""
        words = "" if error is None else str(error) or type(error).__name__
        if words and words != self.failing:
            self._report(f"spool: {self._name}: write failed: {words}")
        elif self.failing and not words:
            self._report(f"spool: {self._name} is written again")
        self.failing = words


def call_all(callbacks: list[Done], error: Exception | None) -> None:
    """Tell all, on the loop; a defect in one keeps nobody else from being told."""
    for callback in callbacks:
        try:
            callback(error)
        except Exception as defect:
            context = {"message": "answer to a commit", "exception": defect}
            asyncio.get_running_loop().call_exception_handler(context)
