"""Hook points in their order, and the policy that a session calls at each.

A policy is a list of modules; each may have a callout for a phase. They run in order until one says DONE, or has set a
reply of 400 or more, which ends the phase whatever the callout returned. A module that fails makes the session's
answer 451: mail is neither let through nor lost because a script is broken.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.policy.context import Context

_LINE_END = re.compile(r"[\r\n]+")


class Phase(Enum):
    """The SMTP phases of the manual, in order; the value is the name of the callout."""

    CONNECT = "validate_connect"
    TLS_POST_ACCEPT = "inbound_smtp_tls_post_accept"
    EHLO = "validate_ehlo"
    MAILFROM = "validate_mailfrom"
    RCPTTO = "validate_rcptto"
    DATA = "validate_data"
    DATA_SPOOL = "validate_data_spool"
    SET_BINDING = "validate_set_binding"


class Hook(Enum):
    """Questions about TLS that a module may answer, by the names of the manual's C hooks."""

    INBOUND_PARAMETERS = "get_inbound_tls_parameters"
    INBOUND_VERIFY = "inbound_smtp_tls_verify_callback"
    OUTBOUND_PARAMETERS = "get_outbound_tls_parameters"
    OUTBOUND_VERIFY = "outbound_smtp_tls_verify_callback"


class Verdict(Enum):
    """What a callout returns: go on, or leave out the remaining modules of this phase."""

    CONT = 0
    DONE = 1


class PolicyError(Exception):
    """A policy cannot be loaded. The message names script and line, `script` the stanza, if one is at fault."""

    script = ""


class Session(NamedTuple):
    """What a callout may know of the session: `remote` and `local` are ip:port."""

    remote: str
    local: str
    connection_id: str
    protocol: str = "esmtp"


@dataclass(slots=True)
class MessageView:
    """A message in the hands of policy. `head` is its header block; bindings chosen are written back here."""

    message_id: str
    batch_id: str
    connection_id: str
    sender: str
    recipient: str
    head: bytes
    size: int
    binding_group: str = ""
    binding: str = ""
    routing_domain: str = ""

    def header(self, name: str) -> list[str]:
        """Unfolded values of a header field."""
        head = self.head.decode("latin-1")
        pattern = re.compile(rf"^{re.escape(name)}[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.I | re.M)
        return [re.sub(r"\r\n[ \t]+", " ", match[1]).strip() for match in pattern.finditer(head)]


@dataclass(slots=True)
class Call:
    """The arguments of one callout. `text` is the command line where the phase has one."""

    phase: Phase | Hook
    session: Session
    context: Context
    text: str = ""
    message: MessageView | None = None

    @property
    def view(self) -> MessageView:
        """The message. Raises ValueError in a phase without one."""
        if self.message is None:
            raise ValueError("there is no message in this phase")
        return self.message


class Module(Protocol):
    name: str

    def callout(self, phase: Phase) -> Callable[[Call], Verdict] | None:
        """The module's function for a phase, if it has one."""

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        """The module's function for a question about TLS, if it has one; arguments as `quillon.policy.tls` gives."""

    def close(self) -> None:
        """The policy is replaced."""


@dataclass
class Policy:
    """`report` gets one line for each callout that failed."""

    modules: Sequence[Module] = ()
    report: Callable[[str], None] = print
    _callouts: dict[Phase, list[tuple[str, Callable[[Call], Verdict]]]] = field(default_factory=dict)
    _hooks: dict[Hook, list[tuple[str, Callable[..., Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for phase in Phase:
            found = [(module.name, callout) for module in self.modules if (callout := module.callout(phase))]
            if found:
                self._callouts[phase] = found
        for hook in Hook:
            answers = [(module.name, answer) for module in self.modules if (answer := module.hook(hook))]
            if answers:
                self._hooks[hook] = answers

    def called(self) -> list[tuple[str, list[str]]]:
        """Each module with the callouts and hooks that it has, in the order of the phases."""
        found = []
        for module in self.modules:
            names = [phase.value for phase in Phase if any(n == module.name for n, _ in self._callouts.get(phase, ()))]
            names += [hook.value for hook in Hook if any(n == module.name for n, _ in self._hooks.get(hook, ()))]
            found.append((module.name, names))
        return found

    def hooks(self, hook: Hook) -> Sequence[tuple[str, Callable[..., Any]]]:
        """Name and function of each module that answers a question."""
        return self._hooks.get(hook, ())

    def has(self, phase: Phase) -> bool:
        """Whether anybody listens: a session without policy does not even build the arguments."""
        return phase in self._callouts

    def run(self, call: Call) -> Reply | None:
        """The refusal that policy decided on, or None. `call.context.disconnect` tells to close behind it."""
        context = call.context
        context.reply, context.disconnect = None, False
        assert isinstance(call.phase, Phase)
        for name, callout in self._callouts.get(call.phase, ()):
            context.module = name
            try:
                verdict = callout(call)
            except Exception as error:
                # whatever a script does wrong is its own fault; the session is told 451 and goes on
                self.report(f"scriptlet: {call.phase.value} error in {name}: {words_of(error)}")
                return replies.POLICY_FAILED
            reply = context.reply
            if reply is not None and context.disconnect and reply.code < 400:
                return Reply(421, "", reply.text)  # to hang up is a refusal: no 250 may stand for mail that is not kept
            if reply is not None and reply.code >= 400:
                return reply
            if verdict is Verdict.DONE:
                break
        context.module = ""  # whoever refuses now, it was none of them
        return None

    def close(self) -> None:
        for module in self.modules:
            module.close()


def set_reply(context: Context, code: int, text: str, *, disconnect: bool) -> None:
    """What a callout says to the client; an enhanced status code may lead the text. Raises ValueError."""
    if not 200 <= code <= 599:
        raise ValueError(f"{code} is no SMTP reply code")
    words = _LINE_END.sub(" ", text).strip()
    match = re.match(r"([245]\.[0-9]{1,3}\.[0-9]{1,3}) (.*)", words)
    context.reply = Reply(code, match[1], match[2]) if match else Reply(code, "", words or "no text")
    context.disconnect = disconnect


def words_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


# callouts of the manual that this version does not call
_NOT_HERE = frozenset(
    {
        "validate_rcptto_list",
        "validate_rcptto_list_final",
        "validate_data_spool_each_rcpt",
        "validate_dealloc",
        "core_final_validation",
        "core_validate_auth",
        "core_validate_auth_hook",
        "core_config_get_message_routing_domain",
        "pre_esmtp_auth",
        "outbound_smtp_auth_config",
    }
)


def unknown_callout(names: Iterable[str]) -> str | None:
    """What is wrong with a module's names: one that looks like a callout and is none would be left out in silence."""
    known = [phase.value for phase in Phase] + [hook.value for hook in Hook]
    for name in names:
        if name in _NOT_HERE:
            return f"{name} is a callout that this version does not have; it would never be called"
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.92)
        if close and close[0] != name:
            return f"{name} is no callout; did you mean {close[0]}?"
    return None


NO_POLICY = Policy()
