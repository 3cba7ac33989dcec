"""Policy modules in Python: a file with functions, or one class with methods, named as the phases and hooks.

    from quillon.policy.python import Message, Session

    async def validate_mailfrom(session: Session) -> None:
        domain = session.message_context["mailfrom_domain"]
        if domain == "bank.fi" and "tls" not in session.connection_context:
            session.reject(550, "5.7.1 mail of bank.fi comes over TLS")
        if not await session.lookup(domain, "MX"):
            session.reject(450, "4.1.8 the sender's domain takes no mail")

Functions of the message phases take (session, message), those of the others (session). `Verdict.DONE` leaves out the
remaining modules of a phase; nothing or `Verdict.CONT` goes on. An `async` function may wait, and then only its own
session does. A policy in Python is part of the server: it may do whatever the server may, and a plain function holds up
its worker for as long as it runs.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quillon.policy.hook import (
    Call,
    Callout,
    Hook,
    Phase,
    PolicyError,
    Verdict,
    may_wait,
    names_of,
    set_reply,
    unknown_callout,
)
from quillon.policy.message import MessageView
from quillon.policy.msys.addresses import address_parts, mailbox_of, mailboxes_of
from quillon.policy.watch import LimitError, Watch
from quillon.policy.world import World

__all__ = [
    "Certificate",
    "Delivery",
    "Message",
    "PythonModule",
    "Remote",
    "Session",
    "TlsParameters",
    "Verdict",
    "load_module",
]

WITH_MESSAGE = frozenset((Phase.RCPTTO, Phase.DATA, Phase.DATA_SPOOL, Phase.EACH_RCPT, Phase.FINAL_VALIDATION))
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
}
LOAD_LIMIT = 10.0  # seconds of CPU: a file may import much


class Session:
    """The client of a callout. Contexts are dictionaries of strings, as the manual lists them."""

    def __init__(self, call: Call, world: World) -> None:
        self._call = call
        self._world = world

    @property
    def remote(self) -> str:
        """The client's address and port."""
        return self._call.session.remote

    @property
    def ip(self) -> str:
        """The client's address."""
        return self._call.session.remote.rpartition(":")[0].strip("[]")

    @property
    def local(self) -> str:
        """The listener's address and port."""
        return self._call.session.local

    @property
    def connection_id(self) -> str:
        """As the logs print it."""
        return self._call.session.connection_id

    @property
    def command(self) -> str:
        """The command line, in the phases that have one."""
        return self._call.text

    @property
    def connection_context(self) -> dict[str, str]:
        """What is known of the connection, TLS verdict included; it lives as long as the connection."""
        return self._call.context.connection

    @property
    def message_context(self) -> dict[str, str]:
        """What is known of the message; it goes into the spool with it."""
        return self._call.context.message

    @property
    def auth_mechanism(self) -> str:
        """In core_validate_auth_hook: the SASL mechanism."""
        return self._call.auth.mechanism if self._call.auth else ""

    @property
    def auth_user(self) -> str:
        """In core_validate_auth_hook: the user, which may be empty."""
        return self._call.auth.user if self._call.auth else ""

    @property
    def auth_status(self) -> str:
        """In core_validate_auth_hook: pass, fail or error."""
        return self._call.auth.status if self._call.auth else ""

    @property
    def recipients(self) -> list[str]:
        """The recipients of the transaction so far."""
        return [str(mailbox) for mailbox in self._call.session.recipients]

    def set_recipients(self, addresses: Sequence[str]) -> None:
        """Other recipients, from validate_rcptto_list to validate_data_spool. Raises ValueError."""
        if self._call.phase not in (Phase.RCPTTO_LIST, Phase.RCPTTO_LIST_FINAL, Phase.DATA, Phase.DATA_SPOOL):
            raise ValueError(f"the recipients cannot be changed in {self._call.phase.value}")
        self._call.session.recipients[:] = dict.fromkeys(mailboxes_of(list(addresses)))

    def reject(self, code: int, text: str) -> None:
        """Answer with this code and text; from 400 on that ends the phase. Raises ValueError for no SMTP code."""
        set_reply(self._call.context, code, text, disconnect=False)
        self._call.context.place = _caller()

    def disconnect(self, code: int, text: str) -> None:
        """Answer and close."""
        set_reply(self._call.context, code, text, disconnect=True)
        self._call.context.place = _caller()

    def tarpit(self, seconds: float) -> None:
        """Slow the session down: each answer from here on waits so many seconds."""
        self._call.session.delay = min(max(float(seconds), 0.0), 60.0)

    def capability_add(self, keyword: str) -> None:
        """Offer one more keyword at EHLO. Raises ValueError."""
        self._call.session.capability_add(keyword)

    def capability_remove(self, keyword: str) -> None:
        """Offer a keyword of EHLO no more."""
        self._call.session.capability_remove(keyword)

    async def lookup(self, name: str, kind: str = "A") -> list[str]:
        """Ask DNS for A, AAAA, TXT, MX, PTR or NS records, best first; an empty list where there is no answer."""
        found = await self._world.lookup(name, kind, "")
        return [text for _, text in found.records]

    async def send(self, sender: str, recipients: Sequence[str], data: bytes) -> None:
        """Send a message of one's own: it is in the spool when this returns. Raises ValueError, PolicyError."""
        await self._world.inject(mailbox_of(sender), mailboxes_of(list(recipients)), data)


class Message:
    """The message of a callout."""

    def __init__(self, view: MessageView) -> None:
        self._view = view

    @property
    def message_id(self) -> str:
        """The id of this recipient's message, from validate_data_spool_each_rcpt on."""
        return self._view.message_id

    @property
    def batch_id(self) -> str:
        """The id of the transaction."""
        return self._view.batch_id

    @property
    def sender(self) -> str:
        """The envelope sender."""
        return self._view.sender

    @property
    def recipient(self) -> str:
        """The envelope recipient; the first one before validate_data_spool_each_rcpt."""
        return self._view.recipient

    @property
    def size(self) -> int:
        """Octets; 0 before the data."""
        return self._view.size

    @property
    def body(self) -> bytes:
        """What stands behind the header section. Setting it raises ValueError in a phase that may not edit."""
        return self._view.content.body

    @body.setter
    def body(self, data: bytes) -> None:
        self._view.set_body(data)

    @property
    def data(self) -> bytes:
        """The whole message. Setting it raises ValueError in a phase that may not edit."""
        return self._view.content.whole

    @data.setter
    def data(self, data: bytes) -> None:
        self._view.set_whole(data)

    def header(self, name: str) -> list[str]:
        """Decoded values of a header field; empty before the data."""
        return self._view.header(name)

    def addresses(self, name: str, part: str = "all") -> list[str]:
        """A part (all, localpart, user, detail, domain) of each address in a header field."""
        return address_parts(self._view.header(name), part)

    def set_header(self, name: str, value: str | Sequence[str], mode: str = "replace") -> None:
        """Replace all fields of a name, or `append`, `prepend`. Raises ValueError."""
        self._view.set_header(name, [value] if isinstance(value, str) else list(value), mode)

    def remove_header(self, name: str) -> bool:
        """Take all fields of a name away; whether there was one. Raises ValueError."""
        return self._view.remove_header(name)

    def discard(self, reason: str = "") -> None:
        """Answer 250 and keep nothing but a line in the rejectlog; a reason begins with an SMTP code."""
        self._view.discard(reason)

    def set_recipient(self, address: str) -> None:
        """Another recipient, in validate_data_spool_each_rcpt. Raises ValueError."""
        if not self._view.own_copy:
            raise ValueError("the recipient cannot be changed in this phase")
        self._view.recipient = str(mailboxes_of([address])[0])

    def set_binding(self, name: str) -> None:
        """The binding, in validate_set_binding."""
        self._view.binding = name

    def set_binding_group(self, name: str) -> None:
        """A binding of this group, in validate_set_binding."""
        self._view.binding_group = name

    def set_routing_domain(self, name: str) -> None:
        """Where it goes instead of to the recipient's domain."""
        self._view.routing_domain = name.lower()

    def set_priority(self, priority: int) -> None:
        """In validate_set_binding: 1 lets it go before others of its queue. Raises ValueError."""
        if priority not in (0, 1):
            raise ValueError("a priority is 0 or 1")
        self._view.priority = priority


def _caller() -> str:
    """File and line of the policy that called."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass(slots=True)
class TlsParameters:
    """What get_inbound_tls_parameters and get_outbound_tls_parameters may change; see `quillon.policy.tls`."""

    use_tls: str
    tls_verify: str
    certfile: str
    keyfile: str
    ca: str
    cipherlist: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a peer presented; all empty if nothing. `names` are entries such as `DNS:mx.bank.fi`."""

    subject: str
    issuer: str
    sha256: str
    spki_sha256: str
    names: tuple[str, ...]
    cause: str


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a delivery is going."""

    host: str
    ip: str
    domain: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way out, in hooks of delivery: its context can be read and set."""

    message: Message
    connection_context: dict[str, str]
    message_context: dict[str, str]


def takes(callout: Phase | Hook) -> tuple[str, ...]:
    """What a callout is called with."""
    return _TAKES.get(callout, ("session",))


async def load_module(name: str, path: Path, world: World, cpu_limit: int = 0) -> PythonModule:
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
        loading = Watch(LOAD_LIMIT if cpu_limit else 0, world.report)
        loading.call(spec.loader.exec_module, module)
        found = PythonModule(name, module, world, Watch(cpu_limit / 1000, world.report))
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
    kind = "" if isinstance(error, LimitError) else f"{type(error).__name__}: "
    return f"{_where(error, path)}: {kind}{error}"


class PythonModule:
    """One policy file, loaded."""

    facility = "policy"

    def __init__(self, name: str, module: ModuleType, world: World, watch: Watch) -> None:
        self.name = name
        self._file = str(module.__file__)
        self._world = world
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
                    result = watch.call(function, Session(call, self._world), Message(call.view))
                else:
                    result = watch.call(function, Session(call, self._world))
            except Exception as error:
                raise self._located(error) from None
            return self._awaited(function, result) if waits else self._verdict(function, result)

        return run

    async def _awaited(self, function: Callable[..., Any], result: Coroutine[Any, Any, Any]) -> Verdict:
        try:
            said = await asyncio.ensure_future(self._watch.steps(result))
        except Exception as error:
            raise self._located(error) from None
        return self._verdict(function, said)

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
        }
        ask: Callable[..., Any] = questions.get(hook, self._plain)
        waits = inspect.iscoroutinefunction(function)

        def run(call: Call, *arguments: Any) -> Any:
            try:
                said = self._watch.call(ask, hook, function, call, *arguments)
            except Exception as error:
                raise self._located(error) from None
            return self._waited_answer(said) if waits else said

        return run

    async def _waited_answer(self, said: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await asyncio.ensure_future(self._watch.steps(said))
        except Exception as error:
            raise self._located(error) from None

    def _parameters(self, hook: Hook, function: Callable[..., Any], call: Call, *values: str) -> tuple[str, ...]:
        given = TlsParameters(*values)
        function(Message(call.view) if hook is Hook.OUTBOUND_PARAMETERS else Session(call, self._world), given)
        return given.use_tls, given.tls_verify, given.certfile, given.keyfile, given.ca, given.cipherlist

    def _verify(self, hook: Hook, function: Callable[..., Any], call: Call, verified: bool, *values: str) -> object:
        subject, issuer, sha256, spki, names, cause, *place = values
        shown = Certificate(subject, issuer, sha256, spki, tuple(filter(None, names.split(","))), cause)
        return function(Remote(*place) if place else Session(call, self._world), verified, shown)

    def _plain(self, hook: Hook, function: Callable[..., Any], call: Call, *values: Any) -> Any:
        """Hooks of reception get the session, those of delivery what is delivered, and then what the question has."""
        if call.message is None:
            return function(Session(call, self._world), *values)
        context = call.context
        return function(Delivery(Message(call.view), context.connection, context.message), *values)

    def _located(self, error: Exception) -> PolicyError:
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
