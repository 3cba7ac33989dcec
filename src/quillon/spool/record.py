"""Rows of the spool to values and back. Pure.

A record is a JSON array whose first element is the version of its layout, so that stock tools can read a spool and a
later Quillon can read an older one's. The body stands beside it, never inside.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from quillon.mail.address import Mailbox
from quillon.mail.message import (
    DANE_STRENGTH,
    TLS_STRENGTH,
    VERIFY_STRENGTH,
    Batch,
    Message,
    MessageId,
    Origin,
    TlsDemand,
)

VERSION = 1  # of batches
REQUEST_VERSION = 2  # of those with a request for TLS, which an older Quillon must not take for one without
TLS_REQUESTS = ("", "requiretls", "no")
MESSAGE_VERSION = 5  # what 1 to 4 lack stands in _LACKING; the demand of 4 has four options
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})
# what a layout lacks that the next one has: priority, context and refusal; the domain chosen and the demand; notices;
# more of a demand
_LACKING: dict[int, list[Any]] = {1: [0, {}, ""], 2: ["", None], 3: [0], 4: []}


def _plain(value: object) -> str | int:
    """Of what a policy has left in a context: a subclass of text is a text."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} cannot be written into a record")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _encode(record: list[Any]) -> str:
    """Raises ValueError for a text that cannot be written."""
    return _encoder.encode(record).decode()


class RecordError(ValueError):
    """A record cannot be read; the message says why."""


def encode_batch(batch: Batch) -> str:
    origin = batch.origin
    return _encode(
        [
            REQUEST_VERSION if batch.tls_request else VERSION,
            batch.sender.local,
            batch.sender.domain,
            origin.source_ip,
            origin.protocol,
            origin.connection_id.number,
            origin.pathway,
            origin.pathway_group,
            batch.received_at,
            batch.size,
            batch.eight_bit,
            dict(batch.connection_context),
            dict(batch.message_context),
            *([batch.tls_request] if batch.tls_request else []),
        ]
    )


def decode_batch(number: int, text: str, path: str) -> Batch:
    """The batch of a row, its body not resident. Raises RecordError."""
    with _reading("batch"):
        version, *rest = json.loads(text)
        if version not in (VERSION, REQUEST_VERSION):
            raise RecordError(f"layout {version!r} is not one that this version reads")
        request = rest.pop() if version == REQUEST_VERSION else ""
        if request not in TLS_REQUESTS:
            raise RecordError(f"{request!r:.80} is no request for TLS")
        local, domain, ip, protocol, connection, pathway, group, received, size, eight_bit, conn, mess = rest
        return Batch(
            id=_id(number),
            sender=_mailbox(_text(local), _name(domain)),
            origin=_origin(_name(ip), _name(protocol), _id(connection), _name(pathway), _name(group)),
            received_at=_time(received),
            size=_count(size),
            body=None,
            path=path,
            eight_bit=bool(eight_bit),
            tls_request=request,
            connection_context=_texts(conn),
            message_context=_texts(mess),
        )


def encode_message(message: Message) -> str:
    recipient = message.recipient
    return _encode(
        [
            MESSAGE_VERSION,
            recipient.local,
            recipient.domain,
            message.binding_group,
            message.binding,
            message.routing_domain,
            message.via,
            message.tries,
            message.next_at,
            message.last_reply,
            message.priority,
            dict(message.context),
            message.refused,
            message.routed,
            message.demand,
            message.notices,
        ]
    )


def decode_message(number: int, text: str, batch: Batch) -> Message:
    """The message of a row. Raises RecordError."""
    with _reading("message"):
        version, *rest = json.loads(text)
        if version != MESSAGE_VERSION and version not in _LACKING:
            raise RecordError(f"layout {version!r} is not one that this version reads")
        for older in range(version, MESSAGE_VERSION):
            rest += _LACKING[older]
        local, domain, group, binding, routing, via, tries, next_at, last_reply, *newer = rest
        priority, context, refused, routed, demand, notices = newer
        return Message(
            id=_id(number),
            batch=batch,
            recipient=Mailbox(_text(local), _name(domain)),
            binding_group=_name(group),
            binding=_name(binding),
            routing_domain=_name(routing),
            via=_name(via),
            tries=_count(tries),
            next_at=_time(next_at),
            last_reply=_name(last_reply),
            priority=_count(priority),
            context=_texts(context),
            refused=_text(refused),
            routed=_text(routed),
            demand=None if demand is None else _demand(demand),
            notices=_count(notices),
        )


@contextlib.contextmanager
def _reading(kind: str) -> Iterator[None]:
    """What a record may do to its reader becomes a RecordError: a spool may hold anything."""
    try:
        yield
    except RecordError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise RecordError(f"malformed {kind} record: {error}") from None


def _id(number: object) -> MessageId:
    if not isinstance(number, int) or not 0 <= number < 1 << 63:
        raise RecordError(f"{number!r} is no id")
    return MessageId.from_number(number)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{value!r:.80} is no text")
    value.encode()  # a lone surrogate could be written nowhere
    return value


def _name(value: object) -> str:
    """A text that many records have, which is kept once."""
    return sys.intern(_text(value))


@lru_cache(maxsize=4096)
def _mailbox(local: str, domain: str) -> Mailbox:
    """One object for all messages of a sender."""
    return Mailbox(local, domain)


@lru_cache(maxsize=4096)
def _origin(ip: str, protocol: str, connection: MessageId, pathway: str, group: str) -> Origin:
    """One object for all messages of a connection."""
    return Origin(ip, protocol, connection, pathway, group)


def _texts(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise RecordError(f"{value!r:.80} is no context")
    if not value:
        return _NO_TEXTS
    return {_text(key): _text(text) for key, text in value.items()}


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise RecordError(f"{value!r:.80} is no count")
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(f"{value!r:.80} is no time")
    return float(value) if value else 0.0  # one object for all that have not been tried


def _demand(value: list[Any]) -> TlsDemand:
    tls, verify, fallback, ca, scopes, places, *more = value
    dane, sts, *texts = more or ("false", False, "", "", "")
    if tls not in TLS_STRENGTH or verify not in VERIFY_STRENGTH or dane not in DANE_STRENGTH:
        raise RecordError(f"{tls!r:.80}, {verify!r:.80} and {dane!r:.80} are no demand")
    whole = 9 if more else 4
    if len(scopes) != whole or len(places) != whole or len(texts) != 3:
        raise RecordError("the demand is not whole")
    known = tuple(map(_text, scopes)), tuple(map(_text, places))
    return TlsDemand(tls, verify, bool(fallback), _text(ca), *known, dane, bool(sts), *map(_text, texts))
