"""Policy modules in Python: a file with functions named as the phases.

    from quillon.policy.python import Message, Session

    def validate_mailfrom(session: Session) -> None:
        if session.message_context["mailfrom_domain"] == "bank.fi" and "tls" not in session.connection_context:
            session.reject(550, "5.7.1 mail of bank.fi comes over TLS")

Functions of the message phases take (session, message), those of the others (session). `Verdict.DONE` leaves out the
remaining modules of a phase; nothing or `Verdict.CONT` goes on. A policy in Python is part of the server: it may do
whatever the server may, and it holds up its worker for as long as it runs.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quillon.policy.hook import Call, Hook, MessageView, Phase, PolicyError, Verdict, set_reply, unknown_callout

__all__ = ["Certificate", "Message", "PythonModule", "Remote", "Session", "TlsParameters", "Verdict", "load_module"]

_WITH_MESSAGE = {Phase.RCPTTO, Phase.DATA, Phase.DATA_SPOOL}


class Session:
    """The client of a callout. Contexts are dictionaries of strings, as the manual lists them."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def remote(self) -> str:
        """The client's address and port."""
        return self._call.session.remote

    @property
    def local(self) -> str:
        return self._call.session.local

    @property
    def connection_id(self) -> str:
        return self._call.session.connection_id

    @property
    def command(self) -> str:
        """The command line, in the phases that have one."""
        return self._call.text

    @property
    def connection_context(self) -> dict[str, str]:
        return self._call.context.connection

    @property
    def message_context(self) -> dict[str, str]:
        return self._call.context.message

    def reject(self, code: int, text: str) -> None:
        """Answer with this code and text; from 400 on that ends the phase. Raises ValueError for no SMTP code."""
        set_reply(self._call.context, code, text, disconnect=False)

    def disconnect(self, code: int, text: str) -> None:
        """Answer and close."""
        set_reply(self._call.context, code, text, disconnect=True)


class Message:
    """The message of a callout."""

    def __init__(self, view: MessageView) -> None:
        self._view = view

    @property
    def sender(self) -> str:
        return self._view.sender

    @property
    def recipient(self) -> str:
        return self._view.recipient

    @property
    def size(self) -> int:
        """Octets; 0 before the data."""
        return self._view.size

    def header(self, name: str) -> list[str]:
        """Unfolded values of a header field; empty before the data."""
        return self._view.header(name)

    def set_binding(self, name: str) -> None:
        self._view.binding = name

    def set_binding_group(self, name: str) -> None:
        self._view.binding_group = name

    def set_routing_domain(self, name: str) -> None:
        self._view.routing_domain = name.lower()


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


def load_module(name: str, path: Path) -> PythonModule:
    """Read a policy file. Raises PolicyError, which names file and line."""
    spec = importlib.util.spec_from_file_location(f"quillon_policy_{name}", path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"policy {name}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PolicyError(f"policy {name}: {_where(error, path)}: {type(error).__name__}: {error}") from None
    found = PythonModule(name, module)
    found.check(path)
    found.init()
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


class PythonModule:
    """One policy file, loaded."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.name = name
        self._module = module

    def check(self, path: Path) -> None:
        """That it has something to call, and nothing that cannot be called. Raises PolicyError."""
        names = [*(phase.value for phase in Phase), *(hook.value for hook in Hook)]
        found = [self._function(name) for name in names]
        for function in found:
            if function is not None and inspect.iscoroutinefunction(function):
                raise PolicyError(f"policy {self.name}: {path}: {function.__name__} is async; write a plain function")
        own = [
            n for n, f in vars(self._module).items() if inspect.isfunction(f) and f.__module__ == self._module.__name__
        ]
        unknown = unknown_callout(name for name in own if not name.startswith("_"))
        if unknown is not None:
            raise PolicyError(f"policy {self.name}: {path}: {unknown}")
        if not any(found):
            raise PolicyError(f"policy {self.name}: {path} has no function named as a phase or hook")

    def _function(self, name: str) -> Callable[..., Any] | None:
        found = getattr(self._module, name, None)
        return found if callable(found) else None

    def callout(self, phase: Phase) -> Callable[[Call], Verdict] | None:
        function = self._function(phase.value)
        if function is None:
            return None

        def run(call: Call) -> Verdict:
            if phase is Phase.SET_BINDING:
                result = function(Message(call.view))
            elif phase in _WITH_MESSAGE:
                result = function(Session(call), Message(call.view))
            else:
                result = function(Session(call))
            if result is None:
                return Verdict.CONT
            if not isinstance(result, Verdict):
                raise PolicyError(f"{phase.value} returned {result!r}, not a Verdict or nothing")
            return result

        return self._located(run)

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        function = self._function(hook.value)
        if function is None:
            return None

        def parameters(call: Call, *values: str) -> tuple[str, ...]:
            given = TlsParameters(*values)
            function(Message(call.view) if hook is Hook.OUTBOUND_PARAMETERS else Session(call), given)
            return given.use_tls, given.tls_verify, given.certfile, given.keyfile, given.ca, given.cipherlist

        def verify(call: Call, verified: bool, *values: str) -> object:
            subject, issuer, sha256, spki, names, cause, *place = values
            shown = Certificate(subject, issuer, sha256, spki, tuple(filter(None, names.split(","))), cause)
            return function(Remote(*place) if place else Session(call), verified, shown)

        return self._located(parameters if hook.value.startswith("get_") else verify)

    def _located(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Errors of the file with its line."""
        path = Path(str(self._module.__file__))

        def call(*arguments: Any) -> Any:
            try:
                return run(*arguments)
            except Exception as error:
                raise PolicyError(f"{_where(error, path)}: {type(error).__name__}: {error}") from None

        return call

    def init(self) -> None:
        """Call the module's own `init`. Raises PolicyError."""
        self._hook("init")

    def close(self) -> None:
        self._hook("deinit")

    def _hook(self, name: str) -> None:
        function = self._function(name)
        if function is None:
            return
        try:
            function()
        except Exception as error:
            raise PolicyError(f"policy {self.name}: {name}: {type(error).__name__}: {error}") from None
