"""Rows of the spool to values and back. Pure.

A record is a JSON array whose first element is the version of its layout, so that stock tools can read a spool and a
later Quillon can read an older one's. The body stands beside it, never inside.
"""

from __future__ import annotations

import json

from quillon.mail.address import Mailbox
from quillon.mail.message import Batch, Message, MessageId, Origin

VERSION = 1  # of batches
MESSAGE_VERSION = 2  # 1 has neither priority nor context nor refusal
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode  # json.dumps would make one a call


class RecordError(ValueError):
    """A record cannot be read; the message says why."""


def encode_batch(batch: Batch) -> str:
    origin = batch.origin
    return _encode(
        [
            VERSION,
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
        ]
    )


def decode_batch(number: int, text: str, path: str) -> Batch:
    """The batch of a row, its body not resident. Raises RecordError."""
    try:
        version, *rest = json.loads(text)
        if version != VERSION:
            raise RecordError(f"layout {version!r} is not one that this version reads")
        local, domain, ip, protocol, connection, pathway, group, received, size, eight_bit, conn, mess = rest
        return Batch(
            id=MessageId.from_number(number),
            sender=Mailbox(str(local), str(domain)),
            origin=Origin(str(ip), str(protocol), MessageId.from_number(int(connection)), str(pathway), str(group)),
            received_at=float(received),
            size=int(size),
            body=None,
            path=path,
            eight_bit=bool(eight_bit),
            connection_context=dict(conn),
            message_context=dict(mess),
        )
    except RecordError:
        raise
    except (ValueError, TypeError) as error:
        raise RecordError(f"malformed batch record: {error}") from None


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
        ]
    )


def decode_message(number: int, text: str, batch: Batch) -> Message:
    """The message of a row. Raises RecordError."""
    try:
        version, *rest = json.loads(text)
        if version not in (1, MESSAGE_VERSION):
            raise RecordError(f"layout {version!r} is not one that this version reads")
        if version == 1:
            rest += [0, {}, ""]
        local, domain, group, binding, routing, via, tries, next_at, last_reply, priority, context, refused = rest
        return Message(
            id=MessageId.from_number(number),
            batch=batch,
            recipient=Mailbox(str(local), str(domain)),
            binding_group=str(group),
            binding=str(binding),
            routing_domain=str(routing),
            via=str(via),
            tries=int(tries),
            next_at=float(next_at),
            last_reply=str(last_reply),
            priority=int(priority),
            context=dict(context),
            refused=str(refused),
        )
    except RecordError:
        raise
    except (ValueError, TypeError) as error:
        raise RecordError(f"malformed message record: {error}") from None
