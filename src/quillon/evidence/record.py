"""A record of evidence: what was demanded, what was proven, what went over the wire, and what came of it. Pure.

One for each message taken, for each attempt to deliver it, for each host that failed on the way, and for each refusal:
a log without failures would prove nothing. Canonical JSON (RFC 8785 for the values that occur: keys sorted, no spaces,
UTF-8).

Persons are not named. The recipient stands as HMAC-SHA-256 under a salt of its own for each record, kept beside the
log: whoever has it can show that the record is of an address, and once it is deleted nobody can.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from quillon.mail import header, shown
from quillon.mail.event import Attempted, Discarded, HostFailed, Received, Rejected, TlsFacts
from quillon.mail.outcome import Delivered, PermanentFailure, TransientFailure

VERSION = 1
SALT = 16  # octets
_REST = re.compile(rb"[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)")  # of a field, behind its name
_ADDRESS = re.compile(r"[^\s<>()\"',;:]+@[^\s<>()\"',;:]+")
_ENCODER = msgspec.json.Encoder(order="deterministic")
_OUTCOMES = {Delivered: "delivered", TransientFailure: "transient", PermanentFailure: "permanent"}

Recorded = Received | Attempted | HostFailed | Rejected | Discarded
Row = dict[str, Any]


class Source(NamedTuple):
    """Who records: the node's name, the worker's number, the SHA-256 of the configuration that rules."""

    node: str
    worker: int
    configuration: str


def encode(row: Row) -> bytes:
    """The octets of a record, which are what is hashed."""
    return _ENCODER.encode(row)


def who(address: str, salt: bytes) -> str:
    """What stands for a recipient."""
    return hmac.digest(salt, address.lower().encode("utf-8", "surrogateescape"), "sha256").hex()


def row_of(event: Recorded, source: Source, salt: bytes) -> Row:
    """The record of an event, but for its number."""
    if isinstance(event, Received):
        row = _received(event, salt)
    elif isinstance(event, Attempted):
        row = _attempted(event, salt)
    elif isinstance(event, HostFailed):
        row = _host_failed(event)
    elif isinstance(event, Discarded):
        row = _discarded(event)
    else:
        row = _rejected(event)
    row["v"] = VERSION
    row["at"] = moment(event.time)
    row["node"] = source.node
    row["worker"] = source.worker
    row["configuration"] = source.configuration
    return row


def _discarded(event: Discarded) -> Row:
    return {
        "kind": "discard",
        "connection": str(event.origin.connection_id),
        "from": {"ip": event.origin.source_ip, "pathway": event.origin.pathway},
        "module": event.module,
        "reply": said(str(event.reply)),
        "tls": None,
    }


def said(reply: str) -> str:
    """A reply without the addresses that it names: they are of persons."""
    return shown.cut(_ADDRESS.sub("(address)", reply) if "@" in reply else reply, shown.REPLY)


def _received(event: Received, salt: bytes) -> Row:
    batch = event.message.batch
    row = _message(event, salt)
    row |= {"kind": "reception", "size": batch.size, "tls": _tls(event.tls)}
    row["from"] = {"ip": batch.origin.source_ip, "protocol": batch.origin.protocol, "pathway": batch.origin.pathway}
    row["connection"] = str(batch.origin.connection_id)
    row |= batch.digest or {}
    return row


def digest_of(head: bytes, sha256: str) -> Row:
    """What tells a message from others, once for all its recipients: out of its header section, and SHA-256 over all of
    its mail data as they are stored."""
    return {"message_id": message_id(head), "subject_sha256": subject_hash(subject_of(head)), "sha256": sha256}


def _attempted(event: Attempted, salt: bytes) -> Row:
    outcome, demand, tls = event.outcome, event.demand, event.tls
    row = _message(event, salt)
    row |= _outcome(outcome)
    row |= {"kind": "attempt", "tls": _tls(tls)}
    row["demand"] = {
        "tls": demand.tls,
        "verify": demand.verify,
        "fallback": demand.fallback,
        "ca": demand.ca,
        "at": list(demand.places[:4]),
        "by": list(demand.scopes[:4]),
        "reasons": list(event.reasons),
    }
    row["host"] = {"name": event.host, "ip": outcome.remote_ip, "from": event.local_ip}
    if event.message.batch.tls_request:
        row["request"] = event.message.batch.tls_request
    row["binding"] = f"{event.message.binding_group}/{event.message.binding}"
    if event.would_wait:
        row["would_wait"] = event.would_wait
    row["clear"] = _in_clear(event)
    return row


def _in_clear(event: Attempted) -> int:
    """Octets of the message that went over the wire without TLS."""
    if event.tls is not None and event.tls.protocol:
        return 0
    if isinstance(event.outcome, Delivered):
        return event.message.batch.size
    return event.outcome.sent


def _host_failed(event: HostFailed) -> Row:
    host = {"name": event.host, "ip": event.outcome.remote_ip, "from": event.local_ip}
    return {"kind": "host", "to": event.domain, "host": host, "tls": _tls(event.tls), **_outcome(event.outcome)}


def _rejected(event: Rejected) -> Row:
    return {
        "kind": "refusal",
        "connection": str(event.connection_id),
        "from": {"ip": event.remote.rpartition(":")[0].strip("[]"), "pathway": event.pathway},
        "state": event.state,
        "sender_domain": event.message_context.get("mailfrom_domain", ""),
        "module": event.module,
        "cause": event.cause,
        "reply": said(str(event.reply)),
        "tls": _tls(event.tls),
    }


def _message(event: Received | Attempted, salt: bytes) -> Row:
    message = event.message
    return {
        "id": str(message.id),
        "batch": str(message.batch.id),
        "sender_domain": message.batch.sender.domain,
        "to": message.recipient.domain,
        "recipient": who(str(message.recipient), salt),
    }


def _outcome(outcome: Delivered | TransientFailure | PermanentFailure) -> Row:
    row: Row = {"outcome": _OUTCOMES[type(outcome)], "reply": said(str(outcome.reply))}
    if not isinstance(outcome, Delivered):
        row |= {"cause": outcome.cause, "stage": outcome.stage.text}
    return row


def _tls(facts: TlsFacts | None) -> Row | None:
    if facts is None:
        return None
    return {
        "protocol": facts.protocol,
        "cipher": facts.cipher,
        "bits": facts.bits,
        "group": facts.group,
        "resumed": facts.resumed,
        "certificates": list(facts.certificates) or ([facts.fingerprint] if facts.fingerprint else []),
        "anchor": facts.anchor_sha256,
        "verified": facts.verified,
        "level": facts.level,
        "matched": facts.matched,
        "standard": facts.standard,
        "cause": facts.cause,
        "detail": facts.detail,
    }


def message_id(data: bytes) -> str:
    """The Message-ID of mail data, "" for none."""
    found = _value(data, b"message-id")
    return shown.line(found.strip().decode("utf-8", "replace"), shown.NAME)


def subject_of(data: bytes) -> str:
    """The subject of mail data as people read it, "" for none."""
    raw = header.unfolded(_value(data, b"subject").decode("latin-1"))
    return raw if "=?" not in raw and raw.isascii() else header.decoded(raw)


def _value(data: bytes, name: bytes) -> bytes:
    """What stands behind the first field of a name in mail data, folded as it is; nothing for none."""
    head = header.section(data)
    low = head.lower()
    at = low.find(name)
    while at >= 0:
        if at == 0 or low[at - 1] == 0x0A:
            found = _REST.match(head, at + len(name))
            if found is not None:
                return found[1]
        at = low.find(name, at + 1)
    return b""


def subject_hash(subject: str) -> str:
    """By which a subject is found without standing in the log: SHA-256 of its words in lower case; "" for none."""
    words = " ".join(subject.lower().split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest() if words else ""


def moment(time: float) -> str:
    """A time as records have it."""
    second, rest = divmod(time, 1.0)
    return f"{_second(int(second))}.{int(rest * 1e6):06}Z"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
