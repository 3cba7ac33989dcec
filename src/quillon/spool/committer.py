"""Writes groups on a thread of its own, one after the other: what comes while one is written goes into the next, so the
price of an fsync is shared by as many as come in its time.

Its user gathers a group on the event loop; `soon` tells that there is one. `take` gives it away, `write` writes it on
the thread and raises where it cannot, `settle` is told on the loop what came of it. `verify` may turn success into
failure.

Two turns of the interpreter a group are what such a thread costs, each a wait for its lock. Where the compiled writer
is there, `plan` may say that a group is nothing but octets to append: these are written and synced by a thread that
needs no interpreter. If that fails, `write` is called with the group after all, to do what follows of a failure.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from quillon.net.histogram import Histogram

try:
    from quillon.spool._writer import Writer as Writer  # noqa: PLC0414 - told from outside whether it is there
except ImportError:  # it was installed without a compiler
    Writer = None  # type: ignore[assignment,misc]

INTERVAL = 0.004  # seconds between the beginnings of two writes at least: under load groups grow instead of writes
RETRY = 0.5  # seconds until what failed is tried again

Done = Callable[[Exception | None], object]
Group = TypeVar("Group")


APPEND = -1


class Write(NamedTuple):
    """Octets to be written at an offset of a file, and synced; at APPEND not synced."""

    file: int
    offset: int
    octets: list[bytes]


class Plan(NamedTuple):
    """Writes, one after the other until one fails. `done` is told on the loop with 0 or the errno, and how many of them
    are done: -1 where none was begun."""

    writes: list[Write]
    done: Callable[[int, int], object]


class Committer(Generic[Group]):
    """`name` is the file that it writes, for what it reports; `report` takes a line."""

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[], Group | None],
        write: Callable[[Group], object],
        settle: Callable[[Group, Exception | None], object],
        report: Callable[[str], object],
        verify: Callable[[Group], object] = lambda _: None,
        plan: Callable[[Group], Plan | None] | None = None,
    ) -> None:
        self._verify = verify
        self._plan = plan
        self._native: Writer | None = None
        self._planned: tuple[Group, Plan] | None = None
        self._name = name
        self._take = take
        self._write = write
        self._settle = settle
        self._report = report
        self._todo: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._loop: Any = None  # not all that loops give is what its class says
        self._writer: threading.Thread | None = None
        self._scheduled = False
        self._stopped = False
        self._begun = 0.0  # when the last write began, in the loop's time
        self.took = Histogram()  # seconds from the begin of a group to its end on disk
        self.busy = False
        self.failing = ""  # why the last group was not written, until one is

    def start(self) -> None:
        """Called on the event loop that `settle` is to run on."""
        self._loop = asyncio.get_running_loop()
        if Writer is not None and self._plan is not None:
            self._native = Writer()
            self._loop.add_reader(self._native.fileno(), self._written)
        self._writer = threading.Thread(target=self._run, name=f"commit {self._name}", daemon=True)
        self._writer.start()

    async def stop(self) -> None:
        """End the thread, after the group that it writes; what has come since is not taken."""
        self._stopped = True
        while self._planned is not None:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.002)  # if it fails, the thread has to see to it
        self._todo.put(None)
        if self._writer is not None:
            await asyncio.to_thread(self._writer.join)
        native, self._native = self._native, None
        if native is not None and self._loop is not None:
            self._loop.remove_reader(native.fileno())
            native.close()

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
        if self._native is None or not self._submitted(group, self._native):
            self._todo.put(group)

    def _submitted(self, group: Group, native: Writer) -> bool:
        """Whether the compiled writer has the group."""
        try:
            plan = self._plan(group) if self._plan is not None else None
        except Exception:
            plan = None  # memory, a record that cannot be made: the thread finds it as well, and tells whom it concerns
        if plan is None:
            return False
        try:
            native.submit(plan.writes)
        except Exception:
            plan.done(errno.ENOMEM, -1)
            return False
        self._planned = (group, plan)
        return True

    def _written(self) -> None:
        """The compiled writer is done."""
        assert self._native is not None
        result = self._native.result()
        if result is None or self._planned is None:
            return
        error, count = result
        (group, plan), self._planned = self._planned, None
        plan.done(error, count)
        if error:
            self._todo.put(group)
        else:
            self._finished(group, None)

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
        if self._loop is not None:
            self.took.add(self._loop.time() - self._begun)
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
