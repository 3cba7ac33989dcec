"""Events to lines. Pure. Layouts are those of the manual's log format chapter, offset for offset.

The text at the end of a mainlog line may hold the separator `@` itself; readers split with a limit. Nothing a remote
host says can break a line: control characters are gone before they come here, and are replaced here once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quillon.mail import shown
from quillon.mail.event import (
    Attempted,
    Authenticated,
    Authorized,
    Discarded,
    Event,
    Handshaken,
    HostFailed,
    Notice,
    Panic,
    Received,
    Rejected,
    TlsFacts,
    TlsReported,
)
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, PermanentFailure, TransientFailure

_NEEDS_QUOTES = re.compile(r"[\s,\]\"]")
MOST_FAILURES = 50  # of a report of SMTP TLS that stand in a line


def _field(text: str) -> str:
    """A field of mainlog other than the last: the separator must not stand in it."""
    return shown.line(text).replace("@", "?")


def heartbeat(now: float) -> str:
    return f"{int(now)}@@@@M"


def reject_heartbeat(now: float) -> str:
    return f"{int(now)}: Marker 1"


def reception(event: Received) -> str:
    """R: recipient, sender, source, size, protocol, binding group, binding."""
    message, batch = event.message, event.message.batch
    return "@".join(
        (
            *_common(event.time, message, "R"),
            _field(message.recipient.local),
            _field(message.recipient.domain),
            _field(batch.sender.local),
            _field(batch.sender.domain),
            batch.origin.source_ip,
            str(batch.size),
            batch.origin.protocol,
            message.binding_group,
            message.binding,
        )
    )


def attempt(event: Attempted) -> str:
    """D, T or P."""
    message, outcome = event.message, event.outcome
    domain = message.destination
    seconds = max(event.time - message.batch.received_at, 0.0)
    retries = str(max(message.tries - 1, 0))
    if isinstance(outcome, Delivered):
        delivered = (
            *_common(event.time, message, "D"),
            domain,
            str(message.batch.size),
            message.binding_group,
            message.binding,
            retries,
            f"{seconds:.3f}".rstrip("0").rstrip("."),
            outcome.remote_ip,
        )
        return "@".join(delivered)
    letter = "T" if isinstance(outcome, TransientFailure) else "P"
    fields = (
        *_common(event.time, message, letter),
        domain,
        str(outcome.sent),
        message.binding_group,
        message.binding,
        str(int(outcome.stage)),
        retries,
        f"{seconds:.2f}",
        outcome.remote_ip,
        shown.line(failure_text(outcome)),
    )
    return "@".join(fields)


def failure_text(outcome: TransientFailure | PermanentFailure) -> str:
    """The reply, with the cause code of a TLS failure behind it."""
    return f"{outcome.reply} ({outcome.cause})" if outcome.cause else str(outcome.reply)


def _common(time: float, message: Message, letter: str) -> tuple[str, str, str, str, str]:
    batch = message.batch
    return str(int(time)), str(message.id), str(batch.id), str(batch.origin.connection_id), letter


def rejection(event: Rejected) -> str:
    return (
        f'{int(event.time)}: R="{event.remote}" L="{event.local}" C="{event.connection_id}"'
        f' PATH="{_inner(event.pathway)}" PATH_GRP="{_inner(event.pathway_group)}"'
        f' P="{event.state}" E={event.reply.code}'
        f" M={event.module} CTXCONN=[{_context(event.connection_context)}]"
        f" CTXMESS=[{_context(event.message_context)}] {shown.line(_without_code(event))}"
    )


def discard(event: Discarded) -> str:
    """A line of the rejectlog for mail that was answered 250 and dropped (manual, msg:discard)."""
    origin = event.origin
    return (
        f'{int(event.time)}: R="{event.remote}" L="{event.local}" C="{origin.connection_id}"'
        f' PATH="{_inner(origin.pathway)}" PATH_GRP="{_inner(origin.pathway_group)}"'
        f' P="sending body response" E={event.reply.code}'
        f" M={event.module} CTXCONN=[{_context(event.connection_context)}]"
        f" CTXMESS=[{_context(event.message_context)}] {shown.line(_without_code(event))}"
    )


def _inner(text: str) -> str:
    """What stands between quotes."""
    return shown.line(text, shown.NAME).replace('"', "'")


def authentication(event: Authenticated) -> str:
    """A line of the acctlog: N, or T where the client did not go on."""
    letter = "T" if event.timed_out else "N"
    fields = (event.local, event.remote, event.user, "1" if event.ok else "0")
    return "@".join((str(int(event.time)), letter, *map(_escaped, fields)))


def authorization(event: Authorized) -> str:
    """A line of the acctlog: Z, with the command, and the role where there is one."""
    fields = [event.listen, event.peer, event.user, str(event.result), event.command]
    fields += [event.role] if event.result == 1 else []
    return "@".join((str(int(event.time)), "Z", *map(_escaped, fields)))


def _escaped(text: str) -> str:
    """The acctlog escapes its separator, the backslash, and control characters."""
    return re.sub(r"[@\\?]", lambda match: "\\" + match[0], shown.line(text, shown.NAME))


def _without_code(event: Rejected | Discarded) -> str:
    reply = event.reply
    text = reply.text.replace("\n", " ")
    return f"{reply.enhanced} {text}" if reply.enhanced else text


def _context(values: Mapping[str, str]) -> str:
    items = (f"{shown.line(key, shown.NAME)}={_quoted(value)}" for key, value in _without_secrets(values).items())
    text, left = shown.joined(items, shown.CONTEXT_LINE)
    return f"{text},...(+{left})" if left else text


def _without_secrets(values: Mapping[str, str]) -> dict[str, str]:
    """A context without the password that a policy has set for AUTH to another server."""
    return {key: value for key, value in values.items() if key != "outbound_smtp_auth_pass"}


def _quoted(value: str) -> str:
    value = shown.line(value, shown.CONTEXT_VALUE)
    return '"' + value.replace('"', "'") + '"' if _NEEDS_QUOTES.search(value) else value


def panic(event: Panic) -> str:
    return f"{int(event.time)}:{shown.line(event.text, shown.PANIC)}"


def lost(kind: str, now: float, count: int) -> str:
    """The mark of lines that could not be written, in the layout of their log."""
    if kind == "json":
        return json.dumps({"time": round(now, 3), "event": "lost", "lines": count}, separators=(",", ":"))
    if kind == "main":
        return f"{int(now)}@@@@M@lost={count}"
    if kind == "acct":
        return f"{int(now)}@?@{count} lines are missing here"
    return f"{int(now)}: Marker lost {count}" if kind == "reject" else f"{int(now)}:log: {count} lines are missing here"


def as_json(event: Event) -> str:
    """One object per event: `time` in seconds, `event`, and what belongs to it."""
    row: dict[str, Any] = {"time": round(event.time, 3), "event": _NAMES[type(event)]}
    if isinstance(event, Received):
        row |= _message_row(event.message)
        row |= {"source_ip": event.message.batch.origin.source_ip, "protocol": event.message.batch.origin.protocol}
        row["tls"] = tls_row(event.tls)
    elif isinstance(event, Attempted):
        row |= _message_row(event.message) | _outcome_row(event)
        demand = event.demand
        row |= {"local_ip": event.local_ip, "tls_option": demand.tls, "tls_option_at": demand.places[0] or "default"}
        row |= {"tls_verify": demand.verify, "tls_verify_at": demand.places[1] or "default"}
        row["tls"] = tls_row(event.tls)
        if event.would_wait:
            row["would_wait"] = event.would_wait
    elif isinstance(event, HostFailed):
        outcome = event.outcome
        row |= {"domain": event.domain, "host": event.host, "remote_ip": outcome.remote_ip, "local_ip": event.local_ip}
        row |= {"reply": shown.cut(str(outcome.reply), shown.REPLY), "stage": outcome.stage.text}
        row |= {"cause": outcome.cause, "tls": tls_row(event.tls)}
    elif isinstance(event, Rejected):
        row |= {"remote": event.remote, "local": event.local, "connection_id": str(event.connection_id)}
        row |= {
            "pathway": event.pathway,
            "state": event.state,
            "reply": shown.cut(str(event.reply), shown.REPLY),
            "module": event.module,
        }
        if event.cause:
            row["cause"] = event.cause
        row["connection_context"] = _shown_context(event.connection_context)
        row["message_context"] = _shown_context(_without_secrets(event.message_context))
        row["tls"] = tls_row(event.tls)
    elif isinstance(event, Discarded):
        row |= {"remote": event.remote, "local": event.local, "connection_id": str(event.origin.connection_id)}
        row |= {"reply": shown.cut(str(event.reply), shown.REPLY), "module": event.module}
        row["connection_context"] = _shown_context(event.connection_context)
        row["message_context"] = _shown_context(_without_secrets(event.message_context))
    elif isinstance(event, Authenticated):
        row |= {"remote": event.remote, "local": event.local, "connection_id": str(event.connection_id)}
        row |= {
            "mechanism": event.mechanism,
            "user": shown.cut(event.user, shown.NAME),
            "ok": event.ok,
            "timed_out": event.timed_out,
        }
    elif isinstance(event, Authorized):
        row |= {"listen": event.listen, "peer": event.peer, "user": shown.cut(event.user, shown.NAME)}
        row |= {"result": event.result, "command": shown.cut(event.command, shown.NAME), "role": event.role}
    elif isinstance(event, Handshaken):
        row |= {"remote": event.remote, "local": event.local, "connection_id": str(event.connection_id)}
        row |= {"ok": event.ok, "tls": tls_row(event.tls)}
    elif isinstance(event, TlsReported):
        row |= {"submitter": event.submitter, "day": event.day, "domain": event.domain, "policy": event.policy}
        row |= {"sessions": event.good, "failed_sessions": event.bad}
        shape = ("result", "host", "sessions")
        row["failures"] = [dict(zip(shape, one, strict=True)) for one in event.failures[:MOST_FAILURES]]
    else:
        row["text"] = shown.cut(event.text, shown.PANIC)
    return json.dumps(row, separators=(",", ":"))


def _shown_context(values: Mapping[str, str]) -> dict[str, str]:
    """A context within the bounds of a log line, the values that come first whole."""
    found: dict[str, str] = {}
    room = shown.CONTEXT_LINE
    for key, value in values.items():
        room -= len(key) + len(value)
        if room < 0:
            found["..."] = f"{len(values) - len(found)} more"
            break
        found[shown.cut(key, shown.NAME)] = value
    return found


_NAMES: dict[type, str] = {
    Received: "reception",
    Attempted: "attempt",
    HostFailed: "host_failure",
    Rejected: "rejection",
    Discarded: "discard",
    Authenticated: "authentication",
    Authorized: "authorization",
    Handshaken: "handshake",
    TlsReported: "tls_report",
    Panic: "panic",
    Notice: "notice",
}


def _message_row(message: Message) -> dict[str, Any]:
    batch = message.batch
    return {
        "message_id": str(message.id),
        "batch_id": str(batch.id),
        "connection_id": str(batch.origin.connection_id),
        "sender": str(batch.sender),
        "recipient": str(message.recipient),
        "size": batch.size,
        "binding_group": message.binding_group,
        "binding": message.binding,
    }


def _outcome_row(event: Attempted) -> dict[str, Any]:
    outcome, message = event.outcome, event.message
    row: dict[str, Any] = {
        "domain": message.destination,
        "tries": message.tries,
        "seconds": round(max(event.time - message.batch.received_at, 0.0), 3),
        "remote_ip": outcome.remote_ip,
        "host": event.host,
        "reply": shown.cut(str(outcome.reply), shown.REPLY),
    }
    if isinstance(outcome, Delivered):
        return row | {"outcome": "delivered"}
    kind = "transient_failure" if isinstance(outcome, TransientFailure) else "permanent_failure"
    return row | {"outcome": kind, "stage": outcome.stage.text, "cause": outcome.cause}


def tls_row(tls: TlsFacts | None) -> dict[str, Any] | None:
    """The TLS part of an event; None in clear text."""
    if tls is None:
        return None
    return {
        "protocol": tls.protocol,
        "cipher": tls.cipher,
        "bits": tls.bits,
        "group": tls.group,
        "verified": tls.verified,
        "level": tls.level,
        "matched": tls.matched,
        "cause": tls.cause,
        "detail": tls.detail,
        "subject": tls.subject,
        "issuer": tls.issuer,
        "sha256": tls.fingerprint,
        "anchor": tls.anchor,
        "anchor_sha256": tls.anchor_sha256,
        "standard": tls.standard,
        "resumed": tls.resumed,
    }
