"""How Python functions become the functions of a script: names, conversion of values, faults with words.

    @library.function("msys.base64.encode", octets=True)     msys.base64.encode(text)
    @library.function("msg:mailfrom")                        a method; its first argument is the handle of the object
    @library.function("msg.id")                              a field; `msg.priority=` sets one
    @library.of_api("msys.log")                              given the Api of the runtime before its own arguments

A file of functions has one `library`; those that share something of a runtime are made by a `register(api)` of it.

Strings of a script come as text read from UTF-8, or as bytes with `octets`; tables as lists or dictionaries. What goes
back is text, bytes, numbers, lists, dictionaries, `Object`, or a tuple of several results. An `async` function lets the
script wait. An exception becomes an error of the script, with the script's line.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

from quillon.lua.msys.codec import Object, decode, encode, from_octets, number_text, plain_number, to_octets
from quillon.net import eager
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, words_of

__all__ = ["Api", "Handle", "Library", "Object", "from_octets", "number_text", "to_octets"]

F = TypeVar("F", bound=Callable[..., Any])


NO_MEMORY = -4.930380657631324e-32  # a number that no function gives


def size_of(result: Any) -> int:
    """Octets of a result's texts, about."""
    if isinstance(result, str):
        return len(result)
    return sum(len(item) for item in result if isinstance(item, str)) + 64 if isinstance(result, tuple) else 64


def words_for_scripts(error: Exception) -> str:
    """An error's words, without names of ours where a function has been called with wrong arguments."""
    words = words_of(error)
    if isinstance(error, TypeError) and "positional argument" in words:
        return "wrong arguments: " + words.partition(" ")[2]
    if isinstance(error, (TypeError, AttributeError, KeyError, IndexError)) or _OURS.search(words):
        return "wrong arguments: a value of another type is expected"
    return words


# what conversions of Python say of values that are of another type
_OURS = re.compile(
    r"NoneType|invalid literal|could not convert|bytes-like|unhashable|has no attribute|unsupported operand"
)


async def _nothing(_number: int) -> None:
    """There are no scripts."""


class _Errand:
    """What runs without a session, until it is over."""

    over = False


class Handle(Protocol):
    """What stands behind `vctx`, `ac` and `msg`: a callout, or whichever one runs in a session."""

    @property
    def call(self) -> Call:
        """The callout."""


class Library:
    """The functions of one namespace, as they stand in its file; `Api.use` gives them to a runtime."""

    def __init__(self, constants: Mapping[str, object] | None = None) -> None:
        self.constants = constants or {}
        self.functions: list[tuple[str, Callable[..., Any], str, bool, bool]] = []
        self.plain: list[tuple[str, Callable[..., Any], str]] = []

    def function(self, name: str, *, octets: bool = False, doc: str = "") -> Callable[[F], F]:
        """Add a function under its name in Lua; its docstring, or `doc`, is what the reference says of it."""
        return self._adding(name, octets, doc, of_api=False)

    def of_api(self, name: str, *, octets: bool = False, doc: str = "") -> Callable[[F], F]:
        """Add a function that is given the Api of the runtime before its arguments."""
        return self._adding(name, octets, doc, of_api=True)

    def _adding(self, name: str, octets: bool, doc: str, *, of_api: bool) -> Callable[[F], F]:
        def add(function: F) -> F:
            self.functions.append((name, function, doc or inspect.getdoc(function) or "", octets, of_api))
            return function

        return add

    def raw(self, name: str) -> Callable[[F], F]:
        """Add a function of plain values that does without conversion, for what is called for every message."""

        def add(function: F) -> F:
            self.plain.append((name, function, inspect.getdoc(function) or ""))
            return function

        return add


class Api:
    """The functions of one runtime. `call` is the callout that is running, None in init and in timers.

    `token` marks what crosses as text, and `fault` what failed: strings that no script can know.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.call: Call | None = None
        self.token = secrets.token_hex(16)
        self.fault = secrets.token_hex(16)
        self.functions: dict[str, Callable[..., Any]] = {}
        self.waits: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {}
        self.constants: dict[str, object] = {}
        self.left_out: dict[str, str] = {}
        self.documented: dict[str, str] = {}
        self.used: Callable[[], int] = lambda: 0  # octets that scripts hold
        self.room = sys.maxsize
        self._caller: ContextVar[Call | None] = ContextVar("caller", default=None)
        self._errand: ContextVar[_Errand | None] = ContextVar("errand", default=None)
        self.drop_kept: Callable[[int], object] = lambda number: None
        self.run_kept: Callable[[int], Coroutine[Any, Any, Any]] = _nothing
        self._aside: set[asyncio.Task[None]] = set()

    def use(self, library: Library) -> None:
        """Give the scripts the functions of a library."""
        self.constants.update(library.constants)
        for name, function, doc in library.plain:
            self.raw(name, function, doc)
        for name, function, doc, octets, of_api in library.functions:
            self._take(name, partial(function, self) if of_api else function, doc, octets)

    def aside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Let something run that nobody waits for, with nothing of what led to it; it reports its errors itself."""
        errand, context = _Errand(), Context()
        context.run(self._errand.set, errand)
        task = context.run(eager.start, coroutine)
        if task is None:
            errand.over = True
            return

        def ended(task: asyncio.Task[None]) -> None:
            errand.over = True
            self._aside.discard(task)

        self._aside.add(task)
        task.add_done_callback(ended)

    def function(self, name: str, *, octets: bool = False) -> Callable[[F], F]:
        """Register a function under its name in Lua."""

        def register(function: F) -> F:
            self._take(name, function, inspect.getdoc(function) or "", octets)
            return function

        return register

    def _take(self, name: str, function: Callable[..., Any], doc: str, octets: bool) -> None:
        self.documented[name] = doc
        if inspect.iscoroutinefunction(function):
            self.waits[name] = self._waiting(function, octets)
            self.functions[name] = function
        else:
            self.functions[name] = self._plain(function, octets)

    def raw(self, name: str, function: Callable[..., Any], doc: str) -> None:
        """Register a function of plain values that does without conversion, for what is called for every message."""
        self.documented[name] = doc
        self.functions[name] = self.guarded(function)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose exceptions become errors of the script."""

        def run(*arguments: Any) -> Any:
            try:
                result = function(*arguments)
                # as `_fitting` has it, for what is given most
                if result is None or (type(result) is str and self.used() + len(result) <= self.room):
                    return result
                return self._fitting(result)
            except Exception as error:
                return self._failed(error)

        return run

    def caller(self) -> object:
        """Who runs: the session whose callout it is, the timer or pool, or this server. Inside of what waits, too."""
        call = self._caller.get() or self.call
        return self._errand.get() or self if call is None else call.session

    def session_call(self) -> Call:
        """The callout that is running. Raises ValueError where a function needs a session and there is none."""
        if self.call is None:
            raise ValueError("there is no session here")
        return self.call

    def _plain(self, function: Callable[..., Any], octets: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            try:
                return self._fitting(self.out(function(*self.into(arguments, octets))))
            except Exception as error:
                return self._failed(error)

        return run

    def _waiting(self, function: Callable[..., Any], octets: bool) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def run(call: Call | None, arguments: list[Any]) -> Any:
            self._caller.set(call)
            return self.out(await function(*arguments))

        def begin(call: Call | None, *arguments: Any) -> Coroutine[Any, Any, Any]:
            return run(call, self.into(arguments, octets))

        return begin

    def _failed(self, error: Exception) -> Any:
        """What the Lua side raises with the place in the script."""
        return self._fitting((self.fault, to_octets(words_for_scripts(error))))

    def _fitting(self, result: Any) -> Any:
        """A result, or NO_MEMORY where there is no room for it: what Lua cannot hold when Python gives it, it cannot
        refuse either, and a number needs no room."""
        if result is None or result is True or result is False:
            return result
        size = len(result) if type(result) is str else size_of(result)
        return NO_MEMORY if self.used() + size > self.room else result

    def full(self, size: int) -> bool:
        """Whether so many octets more are too many."""
        return self.used() + size > self.room

    def into(self, arguments: tuple[Any, ...], octets: bool) -> list[Any]:
        """Arguments of a script for Python. Raises ValueError for tables too deep."""
        if arguments and arguments[0] == self.token:
            found = decode(arguments[1], arguments[2:], octets=octets)
            count = int(found.pop(b"n" if octets else "n"))
            return [found.get(n) for n in range(1, count + 1)]
        out: list[Any] = []
        for value in arguments:
            if isinstance(value, str):
                out.append(value.encode("latin-1") if octets else from_octets(value))
            else:
                out.append(plain_number(value) if isinstance(value, float) else value)
        return out

    def out(self, value: Any) -> Any:
        """A result for a script: a plain value, several of them, or text that stands for tables and objects."""
        values = value if isinstance(value, tuple) else (value,)
        if all(item is None or isinstance(item, (str, bytes, bool, int, float)) for item in values):
            plain = tuple(
                to_octets(item)
                if isinstance(item, str)
                else item.decode("latin-1")
                if isinstance(item, bytes)
                else item
                for item in values
            )
            return plain if len(plain) > 1 else plain[0]
        objects: list[object] = []
        table = dict(enumerate(values, 1)) | {"n": len(values)}
        return (self.token, encode(table, objects), *objects)
