"""How Python functions become the functions of a script: names, conversion of values, faults with words.

    @api.function("msys.base64.encode", octets=True)     msys.base64.encode(text)
    @api.function("msg:mailfrom")                        a method; its first argument is the handle behind the object
    @api.function("msg.id")                              a field; `msg.priority=` sets one

Strings of a script come as text read from UTF-8, or as bytes with `octets`; tables as lists or dictionaries. What goes
back is text, bytes, numbers, lists, dictionaries, `Object`, or a tuple of several results. An `async` function lets the
script wait. An exception becomes an error of the script, with the script's line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import lupa.luajit21 as lupa

from quillon.policy.hook import Call, words_of
from quillon.policy.world import World

F = TypeVar("F", bound=Callable[..., Any])
MAX_DEPTH = 100  # of nested tables


class Handle(Protocol):
    """What stands behind `vctx`, `ac` and `msg`: a callout, or whichever one runs in a session."""

    @property
    def call(self) -> Call:
        """The callout."""


@dataclass(frozen=True, slots=True)
class Object:
    """A result that becomes an object of a script: its kind, and the value behind it."""

    kind: str
    value: object


def to_octets(text: str) -> str:
    """Text as the octets of its UTF-8 form, one character each, which is what strings of a script are made of."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def from_octets(text: str) -> str:
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")


def number_text(value: object) -> str:
    """A value as Lua prints it: whole numbers without a point, nothing for nil."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class Api:
    """The functions of one runtime. `call` is the callout that is running, None in init and in timers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.call: Call | None = None
        self.functions: dict[str, Callable[..., Any]] = {}
        self.waits: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {}
        self.constants: dict[str, object] = {}
        self.left_out: dict[str, str] = {}
        self.documented: dict[str, str] = {}
        self.fault: Any = None
        self.make: dict[str, Callable[[object], Any]] = {}
        self.table_from: Callable[[Any], Any] = dict
        self.opaque: Any = {}
        self._caller: ContextVar[Call | None] = ContextVar("caller", default=None)
        self.run_kept: Callable[..., Any] = lambda number, *arguments: None

    def function(self, name: str, *, octets: bool = False) -> Callable[[F], F]:
        """Register a function under its name in Lua."""

        def register(function: F) -> F:
            self.documented[name] = inspect.getdoc(function) or ""
            if inspect.iscoroutinefunction(function):
                self.waits[name] = self._waiting(function, octets)
                self.functions[name] = function
            else:
                self.functions[name] = self._plain(function, octets)
            return function

        return register

    def raw(self, name: str, function: Callable[..., Any], doc: str) -> None:
        """Register a function that does without conversion: for those that are called for every message."""
        self.documented[name] = doc

        def run(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except Exception as error:
                return self._failed(error)

        self.functions[name] = run

    def caller(self) -> object:
        """Who runs: the session whose callout it is, or this server. Inside of what waits, too."""
        call = self._caller.get() or self.call
        return self if call is None else call.session

    def session_call(self) -> Call:
        """The callout that is running. Raises ValueError where a function needs a session and there is none."""
        if self.call is None:
            raise ValueError("there is no session here")
        return self.call

    def _plain(self, function: Callable[..., Any], octets: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            try:
                return self.out(function(*[self.into(value, octets) for value in arguments]))
            except Exception as error:
                return self._failed(error)

        return run

    def _waiting(self, function: Callable[..., Any], octets: bool) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def run(call: Call | None, arguments: list[Any]) -> Any:
            self._caller.set(call)
            return self.out(await function(*arguments))

        def begin(call: Call | None, *arguments: Any) -> Coroutine[Any, Any, Any]:
            return run(call, [self.into(value, octets) for value in arguments])

        return begin

    def _failed(self, error: Exception) -> Any:
        """What the Lua side raises with the place in the script."""
        if isinstance(error, TypeError) and "argument" in str(error):
            error = TypeError("wrong arguments: " + str(error).partition(" ")[2])
        self.fault["words"] = to_octets(words_of(error))
        return self.fault

    def into(self, value: Any, octets: bool, depth: int = 0) -> Any:
        """A value of a script for Python. Raises ValueError for tables too deep."""
        if isinstance(value, str):
            return value.encode("latin-1") if octets else from_octets(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if lupa.lua_type(value) == "table":
            behind = self.opaque[value]
            if behind is not None:
                return behind
            if depth > MAX_DEPTH:
                raise ValueError("a table is nested too deeply, or holds itself")
            return self._table(value, octets, depth)
        return value

    def _table(self, table: Any, octets: bool, depth: int) -> Any:
        items = list(table.items())
        keys = [key for key, _ in items]
        if keys and all(isinstance(key, int) for key in keys) and sorted(keys) == list(range(1, len(keys) + 1)):
            return [self.into(value, octets, depth + 1) for _, value in sorted(items)]
        return {self.into(key, octets): self.into(value, octets, depth + 1) for key, value in items}

    def out(self, value: Any) -> Any:
        """A Python value for a script."""
        if isinstance(value, str):
            return to_octets(value)
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, tuple):
            return tuple(self.out(item) for item in value)
        if isinstance(value, list):
            return self.table_from([self.out(item) for item in value])
        if isinstance(value, dict):
            return self.table_from({self.out(key): self.out(item) for key, item in value.items()})
        if isinstance(value, Object):
            return self.make[value.kind](value.value)
        return value
