"""What holds for one message on its way out: its TLS, its AUTH, its retries, its expiry, its bounce."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from quillon.config.contracts import KIND as CONTRACT
from quillon.config.contracts import Contract
from quillon.config.model import Config
from quillon.config.outbound import DEMANDS
from quillon.config.scope import Node
from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.mail.message import DANE_STRENGTH, TLS_STRENGTH, VERIFY_STRENGTH, Message, TlsDemand
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, TransientFailure
from quillon.mail.reply import Reply
from quillon.policy.context import Context, not_text
from quillon.policy.hook import Call, Hook, Policy, Session, words_of
from quillon.policy.message import Content, MessageView
from quillon.policy.tls import HookFailed, TlsHooks
from quillon.smtp.client import ClientLogin

AUTH_TYPE, AUTH_USER, AUTH_PASS, AUTH_KEY = (f"outbound_smtp_auth_{word}" for word in ("type", "user", "pass", "key"))
_NONE = ("", "no", "none", "false")


@dataclass(frozen=True, slots=True)
class Override:
    """What is particular to a message: other TLS than is configured, and what it authenticates with."""

    tls: OutboundTls | None = None
    login: ClientLogin | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Policy has to be asked what a message authenticates with, which may take a while: `asked` does."""


@dataclass(frozen=True, slots=True)
class Held:
    """A demand on the message can't be found any more, and what holds in its place is weaker: it waits. `words` name
    the demand with its place."""

    words: str


def via_of(message: Message, config: Config) -> str:
    """Whose stanza rules TLS of a message that a gateway takes (`Message.via`); empty where it is the gateway's.

    A gateway that has changed since leaves the message where it was to go; its own domain's demands hold there.
    """
    group, binding = message.binding_group, message.binding
    routing = config.outbound.way(group, binding, message.routed, message.recipient.domain)
    via = routing.via if routing.domain == message.routing_domain else message.wanted_domain
    return "" if via == message.routing_domain else via


def demand_of(message: Message, config: Config) -> TlsDemand:
    """What is demanded of the way of a message now, by the configuration and by policy."""
    found = config.outbound.demand(message.binding_group, message.binding, message.destination, message.via)
    if not isinstance(message.override, Override) or message.override.tls is None:
        return found
    tls = message.override.tls
    values = (tls.tls, tls.tls_verify, tls.tls_ifavailable_fallback, tls.tls_ca or "")
    # what policy has left as it was, or a contract has put back, is demanded by whoever wrote it
    changed = [value != before for value, before in zip(values, found[:4], strict=True)]
    scopes, places = (
        tuple("policy" if other else one for other, one in zip(changed, known[:4], strict=True)) + known[4:]
        for known in (found.scopes, found.places)
    )
    return found._replace(
        tls=values[0], verify=values[1], fallback=values[2], ca=values[3], scopes=scopes, places=places
    )


class _Weaker(NamedTuple):
    """One option by which less is demanded than before, and where it stood and stands."""

    option: str
    scope: str
    place: str
    scope_now: str
    place_now: str


def _weaker(before: TlsDemand, now: TlsDemand) -> Iterator[_Weaker]:
    """What of a demand somebody had written, and is weaker now. Another TLS_CA counts where it was verified by, as do
    other names and keys where there were any."""
    found = (
        TLS_STRENGTH[now.tls] < TLS_STRENGTH[before.tls],
        VERIFY_STRENGTH[now.verify] < VERIFY_STRENGTH[before.verify],
        now.fallback and not before.fallback and now.tls == "ifavailable",
        now.ca != before.ca and VERIFY_STRENGTH[before.verify] > 0,
        DANE_STRENGTH[now.dane] < DANE_STRENGTH[before.dane],
        before.sts and not now.sts,
        bool(before.names) and now.names != before.names,
        bool(before.spki) and now.spki != before.spki,
        not set(now.protocols.split()) <= set(before.protocols.split()),
    )
    # a demand out of an older spool has no more than four
    for weaker, *of in zip(found, DEMANDS, before.scopes, before.places, now.scopes, now.places, strict=False):
        if weaker and of[1]:
            yield _Weaker(*of)


def lost(message: Message, config: Config, now: TlsDemand, *, by_policy: bool) -> Held | None:
    """Whether a message must not leave under what is demanded `now`: its binding is gone, or what holds is weaker than
    what was demanded when it came, and the stanza that demanded it does not say so itself.

    A weaker value that stands in that very stanza is the operator's word, and holds. `by_policy` tells whether a module
    still rules the TLS of messages.
    """
    if not config.outbound.has_binding(message.binding_group, message.binding):
        where = f'Binding "{message.binding}"'
        if message.binding_group != "default":
            where = f'Binding_Group "{message.binding_group}" > {where}'
        return Held(f"{where} is gone, under which they were to be sent")
    before = message.demand
    for one in _weaker(before, now) if before is not None else ():
        nodes = config.stanzas.at_path(one.scope)
        if one.scope == "policy":
            if not by_policy:
                return Held(f"the policy that demanded {before} is gone")
        elif any(_lets_go(node) for node in nodes):
            continue
        elif not any(_speaks_of(node, one.option) for node in nodes):
            return Held(f"{one.scope} ({one.place}) demanded {before}, and says nothing of {one.option} any more")
        elif one.scope_now != one.scope:
            by = f"{one.scope_now} ({one.place_now})" if one.scope_now else f"the default of {one.option}"
            return Held(f"{one.scope} ({one.place}) demanded {before}, and {by}, which is weaker, goes before it")
    return None


def _speaks_of(node: Node, option: str) -> bool:
    """Whether a stanza says something of an option; a contract that stands does, of all that it demands."""
    return option in node.settings or node.kind == CONTRACT


def _lets_go(node: Node) -> bool:
    """Whether a contract says itself that mail goes without it."""
    said = [node.settings[name].value for name in ("outbound", "enabled") if name in node.settings]
    return node.kind == CONTRACT and ("no" in said or False in said)


def eased(message: Message, now: TlsDemand) -> str:
    """Words on a message of which less is demanded `now`, by those who may say so; empty if it is not."""
    before = message.demand
    for one in _weaker(before, now) if before is not None else ():
        by_stanza = one.scope_now not in ("", "policy")
        where = f"{one.scope_now} ({one.place_now})" if by_stanza else "the policy"
        return f"{before} was demanded of them, and {now} by {where}"
    return ""


def of(
    message: Message, settings: DeliverySettings, tls: OutboundTls, hooks: TlsHooks, contract: Contract | None
) -> Override | Pending | str | None:
    """What is particular to a message, or None; words if policy fails, with which the message has to wait. What policy
    says of TLS holds above what a `contract` wants, not below.

    The message is shown without its header, which may not be resident.
    """
    if hooks.asks(Hook.OUTBOUND_AUTH):
        return Pending()
    set_here = AUTH_TYPE in message.context or AUTH_TYPE in message.batch.message_context
    login = None
    try:
        if set_here or settings.outbound_smtp_auth_type != "false":
            login = _login(_auth_call(message, settings), hooks.policy)
        return _override(message, tls, hooks, login, contract)
    except HookFailed as error:
        return str(error)


async def asked(
    message: Message, settings: DeliverySettings, tls: OutboundTls, hooks: TlsHooks, contract: Contract | None
) -> Override | str | None:
    """As `of`, once outbound_smtp_auth_config has been asked."""
    call = _auth_call(message, settings)
    policy = hooks.policy
    try:
        for name, answer in policy.hooks(Hook.OUTBOUND_AUTH):
            call.context.module = name
            try:
                said = answer(call)
                if inspect.isawaitable(said):
                    await said
            except Exception as error:
                raise _failed(policy, f"{Hook.OUTBOUND_AUTH.value} error in {name}: {words_of(error)}") from None
        return _override(message, tls, hooks, _login(call, policy), contract)
    except HookFailed as error:
        return str(error)


def _override(
    message: Message, tls: OutboundTls, hooks: TlsHooks, login: ClientLogin | None, contract: Contract | None
) -> Override | None:
    """Raises HookFailed."""
    other = tls
    if hooks.asks(Hook.OUTBOUND_PARAMETERS):
        other = hooks.outbound_parameters(call_about(message, Hook.OUTBOUND_PARAMETERS), tls)
        if contract is not None:
            other = contract.on(other)
    if other == tls and login is None:
        return None
    return Override(other if other != tls else None, login)


def _auth_call(message: Message, settings: DeliverySettings) -> Call:
    """What AUTH takes: options, above them the message context, above that the hook (manual, outbound_smtp_auth)."""
    call = call_about(message, Hook.OUTBOUND_AUTH)
    for option in (AUTH_TYPE, AUTH_USER, AUTH_PASS, AUTH_KEY):
        if getattr(settings, option) not in _NONE:
            call.context.message.setdefault(option, getattr(settings, option))
    return call


def _login(call: Call, policy: Policy) -> ClientLogin | None:
    """Raises HookFailed for what AUTH cannot take."""
    values = call.context.message
    found = []
    for option in (AUTH_TYPE, AUTH_USER, AUTH_PASS):
        value = values.get(option, "")
        if not isinstance(value, str) or "\0" in value or not _encodes(value):
            raise _failed(policy, f"{option} is no text that AUTH can carry")
        found.append("" if value in _NONE else value)
    kind, user, password = found[0].upper(), found[1], found[2]
    if kind not in ("", "PLAIN", "LOGIN"):
        raise _failed(policy, f"{AUTH_TYPE} = {kind!r}: it is PLAIN or LOGIN")
    return ClientLogin(kind, user, password) if kind else None


def _failed(policy: Policy, text: str) -> HookFailed:
    policy.report(f"policy: {text}")
    return HookFailed(text)


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def retries(message: Message, settings: DeliverySettings, policy: Policy) -> DeliverySettings:
    """Other limits of retrying, or the same (hook get_msg_expiration_params)."""
    if not policy.hooks(Hook.EXPIRATION):
        return settings
    call = call_about(message, Hook.EXPIRATION)
    said = policy.answers(Hook.EXPIRATION, call, settings.message_expiration, settings.max_retries)
    if said is None:
        return settings
    try:
        expiration, limit = said
        if limit not in ("auto", "none"):
            limit = str(_whole("max_retries", limit))
        return replace(settings, message_expiration=_whole("message_expiration", expiration), max_retries=limit)
    except (TypeError, ValueError) as error:
        policy.report(f"policy: {Hook.EXPIRATION.value} error: {error}")
        return settings


def _whole(name: str, value: object) -> int:
    """A number out of what a script gives, not below 0. Raises ValueError."""
    try:
        if isinstance(value, (int, float, str)):
            return max(int(value), 0)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name} = {value!r}")


def next_attempt(message: Message, when: float, now: float, policy: Policy) -> float:
    """The time of the next attempt, in seconds since the epoch (hook ec_message_set_next_attempt); not in the past."""
    if not policy.hooks(Hook.NEXT_ATTEMPT):
        return when
    said = policy.answers(Hook.NEXT_ATTEMPT, call_about(message, Hook.NEXT_ATTEMPT), when, message.tries)
    if said is None:
        return when
    if isinstance(said, bool) or not isinstance(said, (int, float)) or math.isnan(said):
        policy.report(f"policy: {Hook.NEXT_ATTEMPT.value} error: it returned {said!r}, which is no time")
        return when
    return max(said, now)


_LOGGED = {Delivered: Hook.LOG_DELIVERY, TransientFailure: Hook.LOG_TRANSIENT, PermanentFailure: Hook.LOG_PERMANENT}


def logged(message: Message, outcome: Outcome, now: float, policy: Policy) -> Outcome:
    """The outcome as it is to be logged: policy has heard of it, and may have said another reply (hooks core_log_*_v1).
    What it puts into the message's context is kept for later attempts."""
    hook = _LOGGED[type(outcome)]
    if not policy.hooks(hook):
        return outcome
    call = call_about(message, hook)
    call.view.reply = outcome.reply
    policy.answers(hook, call, message.destination, message.binding, now, str(outcome.reply))
    _keep_context(message, call)
    said = call.view.reply
    return replace(outcome, reply=said) if said is not None and said != outcome.reply else outcome


def requeued(message: Message, now: float, policy: Policy) -> None:
    """A message goes back into its queue (hook core_pre_mailq_message_requeue)."""
    if policy.hooks(Hook.REQUEUE):
        call = call_about(message, Hook.REQUEUE)
        policy.answers(Hook.REQUEUE, call, now)
        _keep_context(message, call)


def _keep_context(message: Message, call: Call) -> None:
    known, found = message.batch.message_context, call.context.message
    if not_text(found) is None:
        message.context = {key: value for key, value in found.items() if known.get(key) != value}


def bounces(message: Message, reply: Reply, policy: Policy) -> bool:
    """Whether the sender is told of a failure (hook generate_bounces)."""
    said = policy.answers(Hook.GENERATE_BOUNCES, call_about(message, Hook.GENERATE_BOUNCES), str(reply))
    return said is None or bool(said)


def bounce_text(message: Message, reply: Reply, text: str, policy: Policy) -> str:
    """The words of a notification (hook generate_rfc3464_message_preamble)."""
    said = policy.answers(Hook.BOUNCE_TEXT, call_about(message, Hook.BOUNCE_TEXT), str(reply), text)
    return said if isinstance(said, str) and said else text


def call_about(message: Message, hook: Hook) -> Call:
    """The arguments of a question about a message that waits or is on its way; its header is not at hand."""
    batch = message.batch
    view = MessageView(
        message_id=str(message.id),
        batch_id=str(batch.id),
        connection_id=str(batch.origin.connection_id),
        sender=str(batch.sender),
        recipient=str(message.recipient),
        content=Content(b"", batch.size),
        binding_group=message.binding_group,
        binding=message.binding,
        routing_domain=message.routing_domain,
    )
    context = Context(dict(batch.connection_context), message.variables())
    ip = batch.origin.source_ip
    remote = f"[{ip}]:0" if ":" in ip else f"{ip}:0"
    session = Session(remote, "", str(batch.origin.connection_id), batch.origin.protocol)
    return Call(hook, session, context, "", view)
