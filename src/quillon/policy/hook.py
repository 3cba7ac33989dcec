"""Hook points in their order, and the policy that a session calls at each.

A policy is a list of modules; each may have a callout for a phase. They run in order until one says DONE, or has set a
reply of 400 or more, which ends the phase whatever the callout returned. A module that fails makes the session's
answer 451: mail is neither let through nor lost because a script is broken.

A callout may wait (for DNS, a database, time): then the phase waits, and with it its own session only.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from quillon.config.nearest import did_you_mean
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply
from quillon.policy.context import Context
from quillon.policy.message import MessageView

CALL_AGAIN = 0.1  # seconds until a callout that returned AGAIN is called once more


class Phase(Enum):
    """The SMTP phases of the manual, in order; the value is the name of the callout."""

    __hash__ = object.__hash__  # members are compared by identity, and Enum hashes their names each time

    CONNECT = "validate_connect"
    TLS_POST_ACCEPT = "inbound_smtp_tls_post_accept"
    EHLO = "validate_ehlo"
    AUTH = "core_validate_auth_hook"
    MAILFROM = "validate_mailfrom"
    RCPTTO = "validate_rcptto"
    RCPTTO_LIST = "validate_rcptto_list"
    RCPTTO_LIST_FINAL = "validate_rcptto_list_final"
    DATA = "validate_data"
    DATA_SPOOL = "validate_data_spool"
    PRE_EACH_RCPT = "core_pre_msg_each_rcpt"
    EACH_RCPT = "validate_data_spool_each_rcpt"
    POST_EACH_RCPT = "core_post_msg_each_rcpt"
    SET_BINDING = "validate_set_binding"
    FINAL_VALIDATION = "core_final_validation"
    POST_FINAL_VALIDATION = "core_post_final_validation"
    DEALLOC = "validate_dealloc"


class Hook(Enum):
    """Questions that a module may answer, by the names of the manual's C hooks."""

    __hash__ = object.__hash__  # as of Phase

    INBOUND_PARAMETERS = "get_inbound_tls_parameters"
    INBOUND_VERIFY = "inbound_smtp_tls_verify_callback"
    OUTBOUND_PARAMETERS = "get_outbound_tls_parameters"
    OUTBOUND_VERIFY = "outbound_smtp_tls_verify_callback"
    PRE_AUTH = "pre_esmtp_auth"
    AC_AUTH = "ac_auth_perform_auth"
    AC_AUTH_FAILED = "ac_auth_log_auth_failure"
    ROUTING_DOMAIN = "core_config_get_message_routing_domain"
    CHOOSE_BINDING = "binding_group_choose_binding"
    RELAY_TO = "pre_ec_can_relay_to"
    DOMAIN_RELAY = "config_get_domain_relay"
    RECEIVED_TEXT = "get_received_header_text"
    NEXT_ATTEMPT = "ec_message_set_next_attempt"
    EXPIRATION = "get_msg_expiration_params"
    OUTBOUND_AUTH = "outbound_smtp_auth_config"
    GENERATE_BOUNCES = "generate_bounces"
    BOUNCE_TEXT = "generate_rfc3464_message_preamble"
    LOG_DELIVERY = "core_log_delivery_v1"
    LOG_TRANSIENT = "core_log_transient_failure_v1"
    LOG_PERMANENT = "core_log_permanent_failure_v1"
    REQUEUE = "core_pre_mailq_message_requeue"
    TLS_REPORTING = "core_smtp_tls_reporting"


VOID = frozenset((Phase.PRE_EACH_RCPT, Phase.POST_EACH_RCPT, Phase.POST_FINAL_VALIDATION))
"""Phases whose callouts only act: what they return, if anything, decides nothing."""
WITH_MESSAGE = frozenset((Phase.RCPTTO, Phase.DATA, Phase.DATA_SPOOL, Phase.EACH_RCPT, Phase.FINAL_VALIDATION, *VOID))
"""Phases whose callouts are called with the message, beside the session."""

ALIASES: dict[str, tuple[str, ...]] = {
    Phase.AUTH.value: ("core_validate_auth", "validate_auth"),
    Phase.FINAL_VALIDATION.value: ("final_validation",),
    Hook.ROUTING_DOMAIN.value: ("config_get_message_routing_domain",),
} | {callout.value: (f"core_{callout.value}",) for callout in (*Phase, *Hook) if not callout.value.startswith("core_")}
"""Other names of callouts: the manual registers a C hook as `<scope>_<hook>`."""


def names_of(callout: Phase | Hook) -> tuple[str, ...]:
    """The names under which a module may have a callout, the usual one first."""
    return (callout.value, *ALIASES.get(callout.value, ()))


class Verdict(Enum):
    """What a callout returns: go on, leave out the remaining modules of this phase, or call me once more."""

    CONT = 0
    DONE = 1
    AGAIN = 2


class PolicyError(Exception):
    """A policy cannot be loaded. The message names script and line, `script` the stanza, if one is at fault."""

    def __init__(self, message: str = "", script: str = "") -> None:
        super().__init__(message)
        self.script = script


class Recipients:
    """The recipients of one transaction. `edits` counts how often policy has changed them, `routes` are the routing
    domains that were chosen for some."""

    def __init__(self, given: Iterable[Mailbox] = ()) -> None:
        self._mailboxes = list(given)
        self.edits = 0
        self.routes: dict[Mailbox, str] = {}

    def __len__(self) -> int:
        return len(self._mailboxes)

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(self._mailboxes)

    def __contains__(self, mailbox: object) -> bool:
        return mailbox in self._mailboxes

    def __getitem__(self, index: int) -> Mailbox:
        return self._mailboxes[index]

    def append(self, mailbox: Mailbox) -> None:
        """One more."""
        self._mailboxes.append(mailbox)

    def replace(self, others: Iterable[Mailbox]) -> None:
        """Other recipients, each of them once."""
        self._mailboxes = list(dict.fromkeys(others))
        self.edits += 1


@dataclass(slots=True)
class Session:
    """What a callout may know of the session: `remote` and `local` are ip:port.

    `capabilities` are EHLO keywords that policy has added (True) or taken away (False), `delay` seconds by which it
    slows the session down, `recipients` those of the transaction that is under way. `stores` keep what modules remember
    of the session, which has ended once it is `over`.
    """

    remote: str
    local: str
    connection_id: str
    protocol: str = "esmtp"
    capabilities: dict[str, bool] = field(default_factory=dict)
    delay: float = 0.0
    recipients: Recipients = field(default_factory=Recipients)
    stores: dict[int, Any] = field(default_factory=dict)
    over: bool = False

    def capability_add(self, keyword: str) -> None:
        """Offer one more keyword at EHLO. Raises ValueError for what is none (RFC 5321 4.1.1.1)."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*(?: [!-~]+)*", keyword):
            raise ValueError(f"{keyword!r} is no EHLO keyword")
        self.capabilities[keyword] = True

    def capability_remove(self, keyword: str) -> None:
        """Offer a keyword no more, and do not take its command."""
        self.capabilities[keyword.upper()] = False


@dataclass(slots=True)
class AuthInfo:
    """An attempt to authenticate: SASL mechanism, user, and how it went (`pass`, `fail`, `error`)."""

    mechanism: str
    user: str
    status: str


@dataclass(slots=True)
class Call:
    """The arguments of one callout. `text` is the command line where the phase has one."""

    phase: Phase | Hook
    session: Session
    context: Context
    text: str = ""
    message: MessageView | None = None
    auth: AuthInfo | None = None

    @property
    def call(self) -> Call:
        """Itself: what objects of scripts hold is a call, or stands for the one that runs in a session."""
        return self

    @property
    def view(self) -> MessageView:
        """The message. Raises ValueError in a phase without one."""
        if self.message is None:
            raise ValueError("there is no message in this phase")
        return self.message


_WAITING_HOOKS = (
    Hook.PRE_AUTH,
    Hook.AC_AUTH,
    Hook.AC_AUTH_FAILED,
    Hook.RELAY_TO,
    Hook.DOMAIN_RELAY,
    Hook.OUTBOUND_AUTH,
)


def may_wait(callout: Phase | Hook) -> bool:
    """Whether a callout may wait for something."""
    return callout is not Phase.DEALLOC if isinstance(callout, Phase) else callout in _WAITING_HOOKS


Callout = Callable[[Call], Verdict | Awaitable[Verdict]]


class Module(Protocol):
    """`facility` begins the panic lines of its errors: the stanza that it came from."""

    facility: str
    name: str

    def callout(self, phase: Phase) -> Callout | None:
        """The module's function for a phase, if it has one."""

    def hook(self, hook: Hook) -> Callable[..., Any] | None:
        """The module's function for a question, if it has one; arguments as its asker gives."""

    def close(self) -> None:
        """The policy is replaced."""


class Unanswered(Exception):
    """A module failed to answer a question that decides on mail. It has been reported; the mail has to wait."""


async def _no_sleep(seconds: float) -> None:
    raise PolicyError("VALIDATE_AGAIN: nothing here can wait")


@dataclass(frozen=True, slots=True)
class Traced:
    """What one callout did: what it returned or how it failed, the reply so far, what it changed in the contexts."""

    phase: str
    module: str
    verdict: str
    reply: Reply | None
    changes: tuple[tuple[str, str, str | None], ...]
    place: str


@dataclass
class PolicyTime:
    """Seconds that each module has taken in each phase, those that it has waited too, and how often it was called."""

    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class Policy:
    """`report` gets one line for each callout that failed; `sleep` lets time pass; `trace` is told of each callout;
    `stop` ends what the modules have begun. `elapsed` tells the time for `spent`."""

    modules: Sequence[Module] = ()
    report: Callable[[str], object] = print
    sleep: Callable[[float], Awaitable[None]] = _no_sleep
    trace: Callable[[Traced], object] | None = None
    stop: Callable[[], object] | None = None
    elapsed: Callable[[], float] = lambda: 0.0
    spent: PolicyTime = field(default_factory=PolicyTime)
    _callouts: dict[Phase, list[tuple[str, str, Callout]]] = field(default_factory=dict)
    _hooks: dict[Hook, list[tuple[str, Callable[..., Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for phase in Phase:
            found = [
                (module.name, f"__bypass_{module.name}", callout)
                for module in self.modules
                if (callout := module.callout(phase))
            ]
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
            names = [phase.value for phase in Phase if any(n == module.name for n, *_ in self._callouts.get(phase, ()))]
            names += [hook.value for hook in Hook if any(n == module.name for n, _ in self._hooks.get(hook, ()))]
            found.append((module.name, names))
        return found

    def hooks(self, hook: Hook) -> Sequence[tuple[str, Callable[..., Any]]]:
        """Name and function of each module that answers a question."""
        return self._hooks.get(hook, ())

    def has(self, phase: Phase) -> bool:
        """Whether anybody listens: a session without policy does not even build the arguments."""
        return phase in self._callouts

    async def run(self, call: Call) -> Reply | None:
        """The refusal that policy decided on, or None. `call.context.disconnect` tells to close behind it."""
        context = call.context
        context.begin_question()
        assert isinstance(call.phase, Phase)
        for name, bypass, callout in self._callouts.get(call.phase, ()):
            if bypass in context.connection:
                continue
            context.module = name
            before = _snapshot(context) if self.trace is not None else {}
            began = self.elapsed()
            try:
                verdict = callout(call)
                if not isinstance(verdict, Verdict):
                    verdict = await verdict
                while verdict is Verdict.AGAIN:
                    verdict = await self._again(call, callout)
            except Exception as error:
                # whatever a script does wrong is its own fault; the session is told 451 and goes on
                self._report(name, call.phase, error)
                self._traced(call, name, f"failed: {words_of(error)}", before)
                return replies.POLICY_FAILED
            finally:
                place = name, call.phase.value
                self.spent.seconds[place] += self.elapsed() - began
                self.spent.calls[place] += 1
            if self.trace is not None:
                self._traced(call, name, verdict.name, before)
            reply: Reply | None = context.reply
            if reply is not None and context.disconnect and reply.code < 400:
                return Reply(421, "", reply.text)  # to hang up is a refusal: no 250 may stand for mail that is not kept
            if reply is not None and reply.code >= 400:
                return reply
            view = call.message
            if view is not None and view.reply is not None and view.reply.code >= 400:
                return view.reply
            if verdict is Verdict.DONE:
                break
        context.module = ""  # whoever refuses now, it was none of them
        return None

    def _report(self, name: str, callout: Phase | Hook, error: Exception) -> None:
        facility = next(module.facility for module in self.modules if module.name == name)
        self.report(f"{facility}: {callout.value} error in {name}: {words_of(error)}")

    def _traced(self, call: Call, name: str, verdict: str, before: Mapping[tuple[str, str], str]) -> None:
        if self.trace is None:
            return
        context, view = call.context, call.message
        after = _snapshot(context)
        changes: list[tuple[str, str, str | None]] = [
            (kind, key, value) for (kind, key), value in after.items() if before.get((kind, key)) != value
        ]
        changes += [(kind, key, None) for kind, key in before if (kind, key) not in after]
        reply = context.reply or (view.reply or view.discarded if view is not None else None)
        place, context.place = context.place, ""
        self.trace(Traced(call.phase.value, name, verdict, reply, tuple(changes), place))

    async def _again(self, call: Call, callout: Callout) -> Verdict:
        if call.phase in (Phase.SET_BINDING, Phase.DEALLOC):
            raise PolicyError(f"VALIDATE_AGAIN: {call.phase.value} cannot be called again")
        await self.sleep(CALL_AGAIN)
        verdict = callout(call)
        return verdict if isinstance(verdict, Verdict) else await verdict

    @contextlib.contextmanager
    def _answering(self, hook: Hook, name: str, call: Call) -> Iterator[None]:
        """Around a module's answer: what it raises is reported, and Unanswered raised."""
        call.context.module = name
        try:
            yield
        except Exception as error:
            self._report(name, hook, error)
            raise Unanswered from None

    async def asked(self, hook: Hook, call: Call, *arguments: object) -> Any:
        """As `decided`, of modules that may have to wait."""
        for name, answer in self._hooks.get(hook, ()):
            with self._answering(hook, name, call):
                said = answer(call, *arguments)
                if inspect.isawaitable(said):
                    said = await said
            if said is not None:
                return said
        return None

    def decided(self, hook: Hook, call: Call, *arguments: object) -> Any:
        """What the first module that has something to say answers to a question; None if none has.

        Raises Unanswered if a module fails, which is reported: what it would have said, nobody knows.
        """
        for name, answer in self._hooks.get(hook, ()):
            with self._answering(hook, name, call):
                said = answer(call, *arguments)
            if said is not None:
                return said
        return None

    def answers(self, hook: Hook, call: Call, *arguments: object) -> Any:
        """As `decided`, where things may go on as configured if a module fails: then nobody has said anything."""
        try:
            return self.decided(hook, call, *arguments)
        except Unanswered:
            return None

    def close(self) -> None:
        """The policy is replaced. Raises PolicyError for those whose end fails, once all have ended."""
        failed = []
        for module in self.modules:
            try:
                module.close()
            except PolicyError as error:
                failed.append(str(error))
        if self.stop is not None:
            self.stop()
        if failed:
            raise PolicyError("; ".join(failed))


def _snapshot(context: Context) -> dict[tuple[str, str], str]:
    """Both contexts, by kind and key."""
    both: dict[str, Mapping[Any, Any]] = {"connection": context.connection, "message": context.message}
    return {(kind, key): value for kind, values in both.items() for key, value in values.items()}


def set_reply(context: Context, code: int, text: str, *, disconnect: bool) -> None:
    """What a callout says to the client; an enhanced status code may lead the text. Raises ValueError."""
    context.reply = reply_of(code, text)
    context.disconnect = disconnect


def reply_of(code: int, text: str) -> Reply:
    """A reply out of what a policy wrote. Raises ValueError."""
    if not isinstance(code, int) or not 200 <= code <= 599:
        raise ValueError(f"{code} is no SMTP reply code")
    words = replies.words(text)
    match = re.match(r"([245]\.[0-9]{1,3}\.[0-9]{1,3}) (.*)", words, re.DOTALL)
    return Reply(code, match[1], match[2]) if match else Reply(code, "", words or replies.NO_TEXT)


def words_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def unknown_callout(names: Iterable[str]) -> str | None:
    """What is wrong with a module's names: one that looks like a callout and is none would be left out in silence."""
    known = [name for callout in (*Phase, *Hook) for name in names_of(callout)]
    for name in names:
        if name in known:
            continue
        if name in NOT_HERE:
            return f"{name} is a callout that this version does not have ({NOT_HERE[name]}); it would never be called"
        meant = did_you_mean(name.lower(), known, 0.92)
        if meant:
            return f"{name} is no callout{meant}"
        if re.match(r"(?:core|validate)_", name):
            meant = did_you_mean(name.lower(), known, 0.7)
            return f"{name} is not a callout of this version; it would never be called{meant}"
    return None


NOT_HERE = {
    "msg_gen_data_spool": "there is no message generation over HTTP",
    "http_request_eval": "there is no HTTP listener",
    "rsrc_setup": "there is no HTTP listener",
    "generic_delivery": "delivery is by SMTP",
    "outbound_tls_ca": "use get_outbound_tls_parameters",
    "outbound_tls_cert": "use get_outbound_tls_parameters",
    "outbound_tls_key": "use get_outbound_tls_parameters",
    "outbound_tls_ciphers": "use get_outbound_tls_parameters",
    "outbound_tls_verify": "use get_outbound_tls_parameters",
    "use_outbound_tls": "use get_outbound_tls_parameters",
    "generate_rfc3464_message": "use generate_rfc3464_message_preamble",
    "post_validate_set_binding": "use validate_set_binding",
}
"""Callouts of the manual that are never called here, and what to use."""

NO_POLICY = Policy()
