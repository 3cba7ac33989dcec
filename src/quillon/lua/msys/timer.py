"""`msys.timer`, `msys.sleep`, and locks: what has to do with time and order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from quillon.lua.msys.api import Api, Object
from quillon.policy.hook import words_of

LONGEST_SLEEP = 300.0  # seconds
LOOK_AGAIN = 0.5  # seconds


@dataclass
class Timer:
    """A function of a script that is called when time has passed; `every` is the interval, 0 for once."""

    name: str
    delay: float
    every: float
    function: int
    cancel: Callable[[], None] | None = None
    runs: bool = False


@dataclass
class Mutex:
    """Held by one callout at a time; a recursive one may be taken again by its holder."""

    recursive: bool = False
    holder: object = None
    depth: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def take(self, who: object) -> bool:
        if getattr(self.holder, "over", False):  # who held it is gone
            self.holder, self.depth = None, 0
        if self.holder is None or (self.recursive and self.holder is who):
            self.holder, self.depth = who, self.depth + 1
            return True
        return False

    def release(self) -> None:
        """Raises ValueError if it is not held."""
        if self.holder is None:
            raise ValueError("unlock of a mutex that is not locked")
        self.depth -= 1
        if self.depth == 0:
            self.holder = None
            while self.waiting:
                future = self.waiting.pop(0)
                if not future.done():
                    future.set_result(None)
                    break

    async def taken(self, who: object) -> None:
        while not self.take(who):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            # a holder that goes without unlocking wakes nobody, nor does one that was woken and then cancelled
            await asyncio.wait([future], timeout=LOOK_AGAIN)


def register(api: Api) -> None:
    @api.function("msys.sleep")
    async def sleep(seconds: float) -> None:
        """Suspend this session; the others go on."""
        if not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST_SLEEP:
            raise ValueError(f"sleep takes 0 to {LONGEST_SLEEP:.0f} seconds")
        await asyncio.sleep(seconds)

    _register_timers(api)
    _register_locks(api)


class _Timers:
    """Those of a runtime. What they have begun ends with `Environment.stop`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._environment = api.environment

    def begin(self, timer: Timer) -> None:
        """Raises ValueError where nothing runs later."""
        if self._environment.after is None:
            raise ValueError("no timer can run here")
        timer.cancel = self._environment.after(timer.delay, lambda: self._ring(timer))
        self._environment.stops[id(timer)] = lambda: self.stop(timer)

    def stop(self, timer: Timer) -> None:
        self._environment.stops.pop(id(timer), None)
        if timer.cancel is not None:
            timer.cancel()
            timer.cancel = None

    def _ring(self, timer: Timer) -> None:
        timer.cancel = None
        self._environment.stops.pop(id(timer), None)
        if timer.every:
            self.begin(timer)
        if not timer.runs:  # one that waits for longer than its interval is not begun anew meanwhile
            self._api.aside(self._run(timer))

    async def _run(self, timer: Timer) -> None:
        timer.runs, function = True, timer.function
        try:
            await self._api.run_kept(function)
        except Exception as error:
            # nobody waits for it: the script's fault is told to the operator
            self._environment.report(f"scriptlet: timer {timer.name or '(without name)'} error: {words_of(error)}")
        finally:
            timer.runs = False
            if not timer.every:
                self._api.drop_kept(function)


def _register_timers(api: Api) -> None:
    timers = _Timers(api)

    def made(delay: float, every: float, function: int, name: str | None) -> Object:
        if not isinstance(delay, (int, float)) or delay < 0:
            raise ValueError("a timer takes seconds and a function")
        timer = Timer(name or "", float(delay), every, function)
        timers.begin(timer)
        return Object("timer", timer)

    @api.function("msys.timer.after")
    def after(seconds: float, function: int, name: str | None = None) -> Object:
        """Call a function once, after so many seconds."""
        return made(seconds, 0.0, function, name)

    @api.function("msys.timer.at")
    def at(time: float, function: int, name: str | None = None) -> Object:
        """Call a function once, at a time in seconds since the epoch."""
        return made(max(float(time) - api.environment.now(), 0.0), 0.0, function, name)

    @api.function("msys.timer.every")
    def every(seconds: float, function: int, name: str | None = None) -> Object:
        """Call a function again and again."""
        if not isinstance(seconds, (int, float)) or seconds < 0.01:
            raise ValueError("a timer that repeats takes 0.01 seconds at least")
        return made(seconds, float(seconds), function, name)

    @api.function("timer:stop")
    def timer_stop(timer: Timer) -> None:
        """Do not call it any more."""
        timers.stop(timer)

    @api.function("timer:start")
    def timer_start(timer: Timer, function: int) -> None:
        """Begin anew."""
        timers.stop(timer)
        timer.function = function
        timers.begin(timer)

    @api.function("timer:name")
    def timer_name(timer: Timer) -> str:
        """The name it was made with."""
        return timer.name


def _register_locks(api: Api) -> None:
    named: dict[str, Mutex] = {}

    @api.function("msys.trylock")
    def try_lock(name: str) -> bool:
        """Take a lock by name, if nobody has it."""
        return named.setdefault(name, Mutex(recursive=True)).take(api.caller())

    @api.function("msys.waitlock")
    async def wait_lock(name: str) -> None:
        """Wait for a lock."""
        await named[name].taken(api.caller())

    @api.function("msys.unlock")
    def unlock(name: str) -> None:
        """Give a lock back."""
        if name not in named:
            raise ValueError(f"there is no lock {name!r}")
        named[name].release()

    @api.function("thread.mutex")
    def mutex(kind: int | None = 0) -> Object:
        """A mutex with lock, unlock, trylock."""
        return Object("mutex", Mutex(recursive=kind == 1))

    @api.function("mutex:trylock")
    def mutex_trylock(lock: Mutex) -> bool:
        """Take it, if nobody has it."""
        return lock.take(api.caller())

    @api.function("mutex:waitlock")
    async def mutex_wait(lock: Mutex) -> None:
        """Wait for it."""
        await lock.taken(api.caller())

    @api.function("mutex:unlock")
    def mutex_unlock(lock: Mutex) -> None:
        """Give it back."""
        lock.release()
