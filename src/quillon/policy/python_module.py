"""Loading and calling policies in Python, which are written with what `quillon.policy.python` has."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from quillon.policy.environment import Environment
from quillon.policy.hook import (
    WITH_MESSAGE,
    Call,
    Callout,
    Hook,
    Phase,
    PolicyError,
    Verdict,
    may_wait,
    names_of,
    unknown_callout,
)
from quillon.policy.python import Certificate, Delivery, Message, Remote, Session, TlsParameters
from quillon.policy.watch import LimitError, Watch

ONLY_MESSAGE = frozenset((Phase.SET_BINDING,))
_TAKES: dict[Phase | Hook, tuple[str, ...]] = {
    **dict.fromkeys(ONLY_MESSAGE, ("message",)),
    **dict.fromkeys(WITH_MESSAGE, ("session", "message")),
    Hook.INBOUND_PARAMETERS: ("session", "parameters"),
    Hook.INBOUND_VERIFY: ("session", "verified", "certificate"),
    Hook.OUTBOUND_PARAMETERS: ("message", "parameters"),
    Hook.OUTBOUND_VERIFY: ("remote", "verified", "certificate"),
    Hook.PRE_AUTH: ("session", "mechanism", "user"),
    Hook.AC_AUTH: ("session", "user", "password"),
    Hook.AC_AUTH_FAILED: ("session", "user", "response"),
    Hook.RELAY_TO: ("session", "domain"),
    Hook.DOMAIN_RELAY: ("session", "domain"),
    Hook.ROUTING_DOMAIN: ("delivery", "scope"),
    Hook.CHOOSE_BINDING: ("delivery", "group"),
    Hook.RECEIVED_TEXT: ("session", "text"),
    Hook.NEXT_ATTEMPT: ("delivery", "next", "tries"),
    Hook.EXPIRATION: ("delivery", "message_expiration", "max_retries"),
    Hook.OUTBOUND_AUTH: ("delivery",),
    Hook.GENERATE_BOUNCES: ("delivery", "reply"),
    Hook.BOUNCE_TEXT: ("delivery", "reply", "text"),
    **dict.fromkeys(
        (Hook.LOG_DELIVERY, Hook.LOG_TRANSIENT, Hook.LOG_PERMANENT), ("delivery", "domain", "binding", "now", "note")
    ),
    Hook.REQUEUE: ("delivery", "now"),
    Hook.TLS_REPORTING: ("report",),
}
T = TypeVar("T")
FAULTS = (Exception, asyncio.CancelledError)  # of a policy: what it waited for may have been cancelled
LOAD_LIMIT = 10.0  # seconds of CPU: a file may import much


def takes(callout: Phase | Hook) -> tuple[str, ...]:
    """What a callout is called with."""
    return _TAKES.get(callout, ("session",))


async def load_module(name: str, path: Path, environment: Environment, cpu_limit: int = 0) -> PythonModule:
    """Read a policy file, whose callouts have `cpu_limit` milliseconds of CPU, 0 for no limit.

    Raises PolicyError, which names file and line.
    """
    known = f"quillon_policy_{name}"
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"policy {name}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(known)
    sys.modules[known] = module  # dataclasses of the file look for it there
    try:
        loading = Watch(LOAD_LIMIT if cpu_limit else 0, environment.report)
        loading.call(spec.loader.exec_module, module)
        found = PythonModule(name, module, environment, Watch(cpu_limit / 1000, environment.report))
    except PolicyError:
        raise
    except (Exception, SystemExit) as error:
        raise PolicyError(f"policy {name}: {_located(error, path)}") from None
    finally:
        if before is not None:
            sys.modules[known] = before
        else:
            del sys.modules[known]
    found.check(path)
    await found.init(loading)
    return found


def _where(error: BaseException, path: Path) -> str:
    """File and line of an error, the innermost that stands in the policy file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}:{line}" if line else str(path)


def _line(function: Callable[..., Any]) -> int:
    """Where a function of the file begins."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else 1


def _arguments_fault(function: Callable[..., Any], count: int) -> str | None:
    """Why a function cannot be called with so many arguments, or None."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        return str(error)
    except ValueError:
        return None  # one that does not tell
    return None


def _located(error: BaseException, path: Path) -> str:
    """An error with file and line."""
    kind = "" if isinstance(error, LimitError) else type(error).__name__
    return ": ".join(filter(None, (_where(error, path), kind, str(error))))


class PythonModule:
    """One policy file, loaded."""

    facility = "policy"

    def __init__(self, name: str, module: ModuleType, environment: Environment, watch: Watch) -> None:
        self.name = name
        self._file = str(module.__file__)
        self._environment = environment
        self._watch = watch
        self._owner = _owner(module)

    def check(self, path: Path) -> None:
        """That it has something to call, and nothing that cannot be called. Raises PolicyError."""
        found = [(callout, self._function(callout)) for callout in (*Phase, *Hook)]
        for callout, function in found:
            if not may_wait(callout) and function is not None and inspect.iscoroutinefunction(function):
                raise PolicyError(f"policy {self.name}: {path}: {callout.value} is async; here it cannot wait")
        for name in _own_functions(self._owner):
            unknown = None if name.startswith("_") else unknown_callout([name])
            if unknown is not None:
                raise PolicyError(f"policy {self.name}: {path}:{_line(getattr(self._owner, name))}: {unknown}")
        for callout, function in found:
            if function is None:
                continue
            wrong = _arguments_fault(function, len(takes(callout)))
            if wrong is not None:
                text = f"{callout.value} is called with ({', '.join(takes(callout))}): {wrong}"
                raise PolicyError(f"policy {self.name}: {path}:{_line(function)}: {text}")
        if inspect.iscoroutinefunction(getattr(self._owner, "deinit", None)):
            raise PolicyError(f"policy {self.name}: {path}: deinit is async; here it cannot wait")
        if not any(function for _, function in found):
            raise PolicyError(f"policy {self.name}: {path} has no function named as a phase or hook")

    def _function(self, callout: Phase | Hook) -> Callable[..., Any] | None:
        found = (getattr(self._owner, name, None) for name in names_of(callout))
        return next((function for function in found if callable(function)), None)

    def callout(self, phase: Phase) -> Callout | None:
        function = self._function(phase)
        if function is None:
            return None
        waits = inspect.iscoroutinefunction(function)
        watch = self._watch

        def run(call: Call) -> Verdict | Awaitable[Verdict]:
            try:
                if phase in ONLY_MESSAGE:
                    result = watch.call(function, Message(call.view))
                elif phase in WITH_MESSAGE:
                    result = watch.call(function, Session(call, self._environment), Message(call.view))
                else:
                    result = watch.call(function, Session(call, self._environment))
            except FAULTS as error:
                raise self._located(error) from None
            return self._awaited(function, result) if waits else self._verdict(function, result)

        return run

    async def _awaited(self, function: Callable[..., Any], result: Coroutine[Any, Any, Any]) -> Verdict:
        return self._verdict(function, await self._end_of(result))

    async def _end_of(self, said: Coroutine[Any, Any, T]) -> T:
        """What an async function comes to. Raises PolicyError, and CancelledError where the session is broken off."""
        try:
            return await asyncio.ensure_future(self._watch.steps(said, self._fault))
        except asyncio.CancelledError as error:
            raise self._fault(error) from None

    def _fault(self, error: BaseException) -> BaseException:
        """What is raised for an error of an async function: at its step it still knows its line."""
        task = asyncio.current_task()
        cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
        return error if cancelled else self._located(error)

    def _verdict(self, function: Callable[..., Any], said: Any) -> Verdict:
        if said is None:
            return Verdict.CONT
        if not isinstance(said, Verdict):
            raise PolicyError(f"{self._file}:{_line(function)}: it returned {said!r}, not a Verdict or nothing")
        return said

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        function = self._function(hook)
        if function is None:
            return None
        questions: dict[Hook, Callable[..., Any]] = {
            Hook.INBOUND_PARAMETERS: self._parameters,
            Hook.OUTBOUND_PARAMETERS: self._parameters,
            Hook.INBOUND_VERIFY: self._verify,
            Hook.OUTBOUND_VERIFY: self._verify,
            Hook.TLS_REPORTING: self._told,
        }
        ask: Callable[..., Any] = questions.get(hook, self._plain)
        waits = inspect.iscoroutinefunction(function)

        def run(call: Call, *arguments: Any) -> Any:
            try:
                said = self._watch.call(ask, hook, function, call, *arguments)
            except FAULTS as error:
                raise self._located(error) from None
            return self._end_of(said) if waits else said

        return run

    def _told(self, _hook: Hook, function: Callable[..., Any], _call: Call, text: str) -> Any:
        return function(json.loads(text))

    def _parameters(self, hook: Hook, function: Callable[..., Any], call: Call, *values: str) -> tuple[str, ...]:
        given = TlsParameters(*values)
        function(Message(call.view) if hook is Hook.OUTBOUND_PARAMETERS else Session(call, self._environment), given)
        return given.use_tls, given.tls_verify, given.certfile, given.keyfile, given.ca, given.cipherlist

    def _verify(self, hook: Hook, function: Callable[..., Any], call: Call, verified: bool, *values: str) -> object:
        subject, issuer, sha256, spki, names, anchor, cause, *place = values
        shown = Certificate(subject, issuer, sha256, spki, tuple(filter(None, names.split("\n"))), cause, anchor)
        return function(Remote(*place) if place else Session(call, self._environment), verified, shown)

    def _plain(self, hook: Hook, function: Callable[..., Any], call: Call, *values: Any) -> Any:
        """Hooks of reception get the session, those of delivery what is delivered, and then what the question has."""
        if call.message is None:
            return function(Session(call, self._environment), *values)
        context = call.context
        return function(Delivery(Message(call.view), context.connection, context.message), *values)

    def _located(self, error: BaseException) -> PolicyError:
        """An error of the file with its line."""
        return PolicyError(_located(error, Path(self._file)))

    async def init(self, loading: Watch) -> None:
        """Call the module's own `init`, plain or async. Raises PolicyError."""
        function = getattr(self._owner, "init", None)
        if not callable(function):
            return
        try:
            given = loading.call(function)
            if inspect.iscoroutine(given):
                await asyncio.ensure_future(loading.steps(given))
        except Exception as error:
            raise PolicyError(f"policy {self.name}: init: {self._located(error)}") from None

    def close(self) -> None:
        """Call the module's own `deinit`, which cannot wait. Raises PolicyError."""
        function = getattr(self._owner, "deinit", None)
        if not callable(function):
            return
        try:
            self._watch.call(function)
        except Exception as error:
            raise PolicyError(f"policy {self.name}: deinit: {self._located(error)}") from None


def _owner(module: ModuleType) -> Any:
    """What has the functions: the module, or an instance of its one class that is named after phases."""
    names = {name for callout in (*Phase, *Hook) for name in names_of(callout)}
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    classes = [c for c in own if names & set(dir(c))]
    if len(classes) > 1:
        raise PolicyError(f"{module.__file__} has {len(classes)} classes with callouts: {classes[0].__name__}, ...")
    if classes and names & set(vars(module)):
        raise PolicyError(f"{module.__file__} has callouts both in {classes[0].__name__} and outside of it")
    return classes[0]() if classes else module


def _own_functions(owner: Any) -> list[str]:
    if isinstance(owner, ModuleType):
        return [n for n, f in vars(owner).items() if inspect.isfunction(f) and f.__module__ == owner.__name__]
    return [name for name, function in inspect.getmembers(owner, inspect.ismethod)]
