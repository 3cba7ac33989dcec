"""The CPU limit of policies in Python: a callout that runs for too long is interrupted where it stands.

A timer of the process ticks with the CPU time that it uses, and so never while nothing runs. A tick that finds a
callout over its limit raises TooLong in it, again and again should it be caught; a callout that catches it every time
holds up all sessions of its worker, and ends with the process, which the supervisor starts again. What runs in C, as a
regular expression does, is interrupted once it comes back.

Only the main thread is watched, which is where policies run.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any, TypeVar

TICK = 0.05  # seconds of CPU
CAUGHT = 40  # ticks after which nothing but the end of the process helps

T = TypeVar("T")


class TooLong(BaseException):
    """Raised in a callout that has used its time: no Exception, for a callout may catch all of those."""


class LimitError(Exception):
    """A callout was stopped. Its traceback is that of the callout."""


class _Running:
    __slots__ = ("begun", "limit", "report", "ticks")

    def __init__(self, limit: float, report: Callable[[str], None]) -> None:
        self.limit = limit
        self.report = report
        self.begun: float | None = None  # by the first tick: most callouts never meet one
        self.ticks = 0


_running: _Running | None = None


class Watch:
    """Runs functions within `limit` seconds of CPU, 0 for no limit; `report` gets a line before the process ends."""

    def __init__(self, limit: float, report: Callable[[str], None]) -> None:
        self._limit = limit
        self._report = report
        if limit and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGPROF, _tick)
            signal.siginterrupt(signal.SIGPROF, False)
            signal.setitimer(signal.ITIMER_PROF, TICK, TICK)
            # the interpreter's own end takes the handler away first, and a tick without one ends the process
            atexit.unregister(_stop_ticking)
            atexit.register(_stop_ticking)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives. Raises LimitError, and what the function raises."""
        global _running
        outer, _running = _running, _Running(self._limit, self._report) if self._limit else None
        try:
            return function(*arguments)
        except TooLong as error:
            words = f"stopped after more than {self._limit * 1000:.0f} ms of CPU"
            raise LimitError(words).with_traceback(error.__traceback__) from None
        except SystemExit as error:
            raise LimitError("sys.exit would end the server").with_traceback(error.__traceback__) from None
        finally:
            _running = outer

    def steps(
        self, coroutine: Coroutine[Any, Any, T], told: Callable[[BaseException], BaseException] = lambda error: error
    ) -> Coroutine[Any, Any, T]:
        """The same coroutine, each of whose steps is within the limit; `told` makes what is raised of what goes wrong
        in one."""
        return _Steps(self, coroutine, told)


class _Steps(Coroutine[Any, Any, T]):
    def __init__(
        self, watch: Watch, inner: Coroutine[Any, Any, T], told: Callable[[BaseException], BaseException]
    ) -> None:
        self._watch = watch
        self._inner = inner
        self._told = told

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def _step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._watch.call(function, *arguments)
        except StopIteration:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise self._told(error) from None

    def close(self) -> None:
        self._watch.call(self._inner.close)

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield from self._inner.__await__())


def _stop_ticking() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)


def _tick(_signal: int, frame: FrameType | None) -> None:
    running = _running
    # not in `call` itself, which is the server's and has to come to its end
    if running is None or frame is None or frame.f_code is Watch.call.__code__:
        return
    now = time.thread_time()
    if running.begun is None:
        running.begun = now
    elif now - running.begun > running.limit:
        running.ticks += 1
        if running.ticks > CAUGHT:
            running.report("a policy catches what would stop it (a bare except?), and goes on: this process ends")
            os._exit(os.EX_SOFTWARE)
        raise TooLong
