"""Formats of custom_logger: text with macros, compiled once, expanded per event (manual, custom_logger and tls_macros).

`compile_format` gives a `Template` or raises ValueError with words for the operator. The `outbound_tls` macros and
`local_ip` belong to the namespace of that name. Times are seconds since the epoch.
"""

from __future__ import annotations

import re
import time as calendar
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quillon.mail import shown
from quillon.mail.event import Attempted, Received, Rejected, TlsFacts
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, PermanentFailure, Stage, TransientFailure

STAGES = ("reception", "delivery", "transient_failure", "permanent_failure", "xfer", "rejection")
BUILT_IN = ("custom_logger", "sieve")
TLS_NAMESPACE = "outbound_tls"
Logged = Received | Attempted | Rejected

_MACRO = re.compile(r"%(?:([A-Za-z_][A-Za-z0-9_]*)(?::([a-z][a-z_]*))?)?(?:(?<=[A-Za-z0-9_])\{([^}]*)\})?")
_SPECIAL = re.compile(r"[^A-Za-z0-9 ._@:+=<>()\[\]/,;-]")
_TRANSLATE = re.compile(r"tr/([^/])/([^/]?)/")
_NULL_ID = "00/00-00000-00000000"
_NOT_HERE = {
    "c": "bounces are not classified by this version",
    "C": "bounces are not classified by this version",
    "h": "header fields are not kept for the log by this version",
}


@dataclass(frozen=True)
class _Facts:
    """An event as the macros see it; what an event does not have is empty."""

    event: Logged

    @property
    def message(self) -> Message | None:
        return None if isinstance(self.event, Rejected) else self.event.message

    @property
    def failure(self) -> TransientFailure | PermanentFailure | None:
        outcome = self.event.outcome if isinstance(self.event, Attempted) else None
        return None if outcome is None or isinstance(outcome, Delivered) else outcome

    @property
    def tls(self) -> TlsFacts | None:
        return self.event.tls

    def context(self, kind: str, key: str) -> str:
        if isinstance(self.event, Rejected):
            held: Mapping[str, str] = getattr(self.event, f"{kind}_context")
        else:
            held = getattr(self.event.message.batch, f"{kind}_context")
        return held.get(key, "")


def _rejected(facts: _Facts, key: str) -> str:
    return facts.context("message", key)


def _reply(facts: _Facts) -> str:
    event = facts.event
    if isinstance(event, Rejected):
        return str(event.reply)
    if isinstance(event, Attempted):
        failure = facts.failure
        cause = f" ({failure.cause})" if failure is not None and failure.cause else ""
        return f"{event.outcome.reply}{cause}"
    return ""


def _remote_ip(facts: _Facts) -> str:
    event = facts.event
    if isinstance(event, Attempted):
        return event.outcome.remote_ip
    if isinstance(event, Received):
        return event.message.batch.origin.source_ip
    return event.remote.rpartition(":")[0].strip("[]")


def _stage(facts: _Facts) -> Stage:
    failure = facts.failure
    if failure is not None:
        return failure.stage
    return Stage.READING_CONFIRMATION if isinstance(facts.event, Attempted) else Stage.UNKNOWN


def _age(facts: _Facts, digits: str) -> str:
    message = facts.message
    seconds = max(facts.event.time - message.batch.received_at, 0.0) if message is not None else 0.0
    return f"{seconds:.{int(digits or 2)}f}"


def _of_message(get: Callable[[Message], object], key: str = "") -> Callable[[_Facts, str], str]:
    """A macro whose value stands in the message; a rejection has it in its message context, if at all."""

    def value(facts: _Facts, _argument: str) -> str:
        message = facts.message
        if message is not None:
            return str(get(message))
        return _rejected(facts, key) if key else ""

    return value


def _pathway(facts: _Facts, group: bool) -> str:
    event = facts.event
    if isinstance(event, Rejected):
        return event.pathway_group if group else event.pathway
    origin = event.message.batch.origin
    return origin.pathway_group if group else origin.pathway


def _protocol(facts: _Facts) -> str:
    message = facts.message
    if message is not None:
        return message.batch.origin.protocol
    return "esmtp" if "mailfrom_string" in facts.event.message_context else "unknown"  # type: ignore[union-attr]


def _connection_id(facts: _Facts) -> str:
    event = facts.event
    return str(event.connection_id if isinstance(event, Rejected) else event.message.batch.origin.connection_id)


def _encrypted(facts: _Facts) -> str:
    """`TLS`, `SMTP` where mail went or would have gone in clear, `unknown` where it did not come to that."""
    tls = facts.tls
    if tls is not None and tls.protocol:
        return "TLS"
    failure = facts.failure
    settled = failure is None or (failure.stage is not Stage.NOT_CONNECTED and not failure.cause)
    return "SMTP" if settled else "unknown"


def _tls(get: Callable[[TlsFacts], object]) -> Callable[[_Facts, str], str]:
    def value(facts: _Facts, _argument: str) -> str:
        tls = facts.tls
        return str(get(tls) or "") if tls is not None and tls.protocol else ""

    return value


def _wanted(facts: _Facts, _argument: str) -> str:
    return facts.event.demand.tls if isinstance(facts.event, Attempted) else ""


def _strftime(facts: _Facts, form: str) -> str:
    return calendar.strftime(form, calendar.localtime(facts.event.time)) if form else str(int(facts.event.time))


_MACROS: dict[str, Callable[[_Facts, str], str]] = {
    "A": lambda f, _: f.context("connection", "auth_status") and f.context("connection", "auth_method"),
    "b": _of_message(lambda m: m.binding),
    "B": _of_message(lambda m: m.batch.size),
    "BI": lambda f, _: str(f.message.batch.id) if f.message is not None else _NULL_ID,
    "CI": lambda f, _: _connection_id(f),
    "d": _of_message(lambda m: m.destination),
    "g": _of_message(lambda m: m.binding_group),
    "H": lambda f, _: _remote_ip(f),
    "i": lambda f, _: str(f.message.id) if f.message is not None else _NULL_ID,
    "m": _of_message(lambda m: m.batch.sender.local, "mailfrom_localpart"),
    "M": _of_message(lambda m: m.batch.sender.domain, "mailfrom_domain"),
    "n": lambda f, _: _reply(f),
    "N": _of_message(lambda m: m.tries),
    "p": lambda f, _: _protocol(f),
    "P": lambda f, _: _pathway(f, False),
    "PG": lambda f, _: _pathway(f, True),
    "r": _of_message(lambda m: m.recipient.local, "rcptto_localpart"),
    "R": _of_message(lambda m: m.recipient.domain, "rcptto_domain"),
    "s": lambda f, _: _stage(f).text,
    "S": lambda f, _: str(int(_stage(f))),
    "t": _strftime,
    "T": _age,
    "U": lambda f, _: f.context("connection", "auth_user"),
    "us": lambda f, digits: f"{f.event.time:.{int(digits or 6)}f}",
    "vctx_conn": lambda f, key: f.context("connection", key),
    "vctx_mess": lambda f, key: f.context("message", key),
}
_TLS_MACROS: dict[str, Callable[[_Facts, str], str]] = {
    "outbound_tls": lambda f, _: _encrypted(f),
    "outbound_tls_type": _wanted,
    "outbound_tls_cipher": _tls(lambda t: t.cipher),
    "outbound_tls_cipher_algbits": _tls(lambda t: t.algorithm_bits),
    "outbound_tls_cipher_usebits": _tls(lambda t: t.bits),
    "outbound_tls_protocol": _tls(lambda t: t.protocol),
    "outbound_tls_verified": _tls(lambda t: "verified" if t.verified else "unverified"),
    "outbound_tls_issuer": _tls(lambda t: t.issuer_cn or t.issuer),
    "outbound_tls_subject": _tls(lambda t: t.subject_cn or t.subject),
    "outbound_tls_level": _tls(lambda t: t.level),
    "outbound_tls_matched": _tls(lambda t: t.matched),
    "outbound_tls_anchor": _tls(lambda t: t.anchor),
    "outbound_tls_demand": lambda f, _: str(f.event.demand) if isinstance(f.event, Attempted) else "",
    "outbound_tls_cause": lambda f, _: f.tls.cause if f.tls is not None else "",
    "local_ip": lambda f, _: f.event.local_ip if isinstance(f.event, Attempted) else "",
}
_WITH_KEY = {"vctx_conn", "vctx_mess"}
_WITH_DIGITS = {"T", "us"}
_SANITIZED = {"n", "vctx_conn", "vctx_mess"}


@dataclass(frozen=True)
class Template:
    """A compiled format."""

    parts: tuple[Callable[[_Facts], str], ...]

    def line(self, event: Logged) -> str:
        """The event as one line."""
        facts = _Facts(event)
        return "".join(part(facts) for part in self.parts)


def compile_format(text: str, namespaces: tuple[str, ...], sanitize: tuple[str, ...] = ()) -> Template:
    """A format for events. Raises ValueError for an unknown macro, or one whose namespace is not listed."""
    clean = _sanitizer(sanitize)
    parts: list[Callable[[_Facts], str]] = []
    at = 0
    for found in _MACRO.finditer(text):
        parts.append(_literal(text[at : found.start()]))
        at = found.end()
        first, second, argument = found.groups()
        if first is None:
            parts.append(_literal("%"))
            continue
        name = first
        if second is not None and first in (*BUILT_IN, TLS_NAMESPACE):
            name = second
        elif second is not None:
            raise ValueError(f"%{first}:{second}: letters cannot stand behind a colon; there is no namespace {first}")
        parts.append(_part(name, argument or "", namespaces, clean))
    parts.append(_literal(text[at:]))
    return Template(tuple(parts))


def _part(
    name: str, argument: str, namespaces: tuple[str, ...], clean: Callable[[str], str]
) -> Callable[[_Facts], str]:
    if name in _NOT_HERE:
        raise ValueError(f"%{name}: {_NOT_HERE[name]}")
    value = _MACROS.get(name)
    if value is None and name in _TLS_MACROS:
        if TLS_NAMESPACE not in namespaces:
            raise ValueError(f'%{name} needs namespace = "custom_logger,sieve,{TLS_NAMESPACE}" and a tls_macros stanza')
        value = _TLS_MACROS[name]
    if value is None:
        raise ValueError(f"%{name} is no macro (a letter cannot be a delimiter)")
    if name in _WITH_KEY and not argument:
        raise ValueError(f"%{name} needs a key, as in %{name}{{tls_cipher}}")
    if name in _WITH_DIGITS and argument and not re.fullmatch(r"[0-9]", argument):
        raise ValueError(f"%{name}{{{argument}}}: the number of decimals is one digit")
    last = clean if name in _SANITIZED else _one_line
    return lambda facts: last(value(facts, argument))


def _literal(text: str) -> Callable[[Any], str]:
    return lambda _: text


def _one_line(text: str) -> str:
    return shown.line(text, shown.CONTEXT_VALUE)


def _sanitizer(words: tuple[str, ...]) -> Callable[[str], str]:
    """What `sanitize` asks for: special_characters, non_printable, tr/a/b/. Control characters always go."""
    steps: list[Callable[[str], str]] = [_one_line]
    for word in words:
        translate = _TRANSLATE.fullmatch(word)
        if word == "special_characters":
            steps.append(lambda text: _SPECIAL.sub("?", text))
        elif word == "non_printable":
            steps.append(lambda text: "".join(c if c.isprintable() else "?" for c in text))
        elif translate:
            steps.append(lambda text, a=translate[1], b=translate[2]: text.replace(a, b))  # type: ignore[misc]
        else:
            raise ValueError(f"sanitize = {word!r}: it is special_characters, non_printable or tr/a/b/")

    def clean(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return clean


def stage_of(event: Logged) -> str:
    """The custom_logger stage of an event."""
    if isinstance(event, Received):
        return "reception"
    if isinstance(event, Rejected):
        return "rejection"
    if isinstance(event.outcome, Delivered):
        return "delivery"
    return "transient_failure" if isinstance(event.outcome, TransientFailure) else "permanent_failure"
