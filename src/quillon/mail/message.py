"""A message as the spool, the queue and delivery know it.

One SMTP transaction is a `Batch`: the reverse-path, the mail data, and where it came from. Each of its recipients is
a `Message` of its own with its own id, tried and logged by itself; the mail data is shared.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from quillon.mail.address import Mailbox

_ID = re.compile(r"([0-9A-F]{2})/([0-9A-F]{2})-([0-9]{5})-([0-9A-F]{8})", re.IGNORECASE)


class MessageId(NamedTuple):
    """32 bits of epoch seconds, 16 bits of process id, 16 bits of a counter (manual, struct message_id)."""

    slot: int
    pid: int
    counter: int

    def __str__(self) -> str:
        """`CC/CC-PPPPP-SSSSSSSS`: counter and slot as hexadecimal digits in reverse order."""
        return f"{_REVERSED[self.counter & 0xFF]}/{_REVERSED[self.counter >> 8]}{_tail(self.slot, self.pid)}"

    @property
    def number(self) -> int:
        """The id as one 63-bit integer, which sorts by time: the key of the spool."""
        return (self.slot & 0x7FFFFFFF) << 32 | self.pid << 16 | self.counter

    @classmethod
    def parse(cls, text: str) -> MessageId:
        """An id as it is shown. Raises ValueError."""
        match = _ID.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r:.60} is no message id: one looks like 53/6B-18426-1AAEACF3")
        low, high, pid, slot = match.groups()
        return cls(int(slot[::-1], 16), int(pid), int((low + high)[::-1], 16))

    @classmethod
    def from_number(cls, number: int) -> MessageId:
        slot, pid = _begin(number >> 16)
        return cls(slot, pid, number & 0xFFFF)


@lru_cache(maxsize=4096)
def _begin(high: int) -> tuple[int, int]:
    """Slot and process id, one object each for all ids that share them: a full queue has millions of ids."""
    return high >> 16, high & 0xFFFF


_REVERSED = tuple(f"{octet:02X}"[::-1] for octet in range(256))  # hexadecimal digits of each octet


@lru_cache(maxsize=64)
def _tail(slot: int, pid: int) -> str:
    """What ids of the same second have in common."""
    slots = f"{slot:08X}"[::-1]
    return f"-{pid:05d}-{slots}"


NULL_ID = MessageId(0, 0, 0)


class IdSource:
    """Gives ids that no other call of this process gives. `pid` is cut to 16 bits. `after` is a second that others of
    the same pid may have had ids of, for a clock may have been set back."""

    def __init__(self, pid: int, after: int = 0) -> None:
        self._pid = pid & 0xFFFF
        self._slot = after
        self._counter = 0

    def next(self, now: float) -> MessageId:
        """The next id; the slot runs ahead of `now` rather than repeat when the counter is used up."""
        slot = int(now)
        if slot > self._slot:
            self._slot, self._counter = slot, 0
        elif self._counter == 0xFFFF:
            self._slot, self._counter = self._slot + 1, 0
        else:
            self._counter += 1
        return MessageId(self._slot, self._pid, self._counter)


class Origin(NamedTuple):
    """Where a message came from. `protocol` is `esmtp` or, for what Quillon writes itself, `internal`."""

    source_ip: str
    protocol: str
    connection_id: MessageId
    pathway: str = "default"
    pathway_group: str = "default"


# how much a value demands, by which two are compared
TLS_STRENGTH = {"no": 0, "ifavailable": 1, "required": 2}
VERIFY_STRENGTH = {"no": 0, "optional": 0, "ca": 1, "host": 2}


DANE_STRENGTH = {"false": 0, "true": 1, "mandatory": 2}


class TlsDemand(NamedTuple):
    """What is demanded of the way of a message: the values of TLS, TLS_Verify, TLS_Ifavailable_Fallback and TLS_CA, and
    of use_dane, use_mta_sts, TLS_Names, TLS_SPKI and TLS_Protocols, of which the last three stand as texts.

    `scopes` are the paths of the stanzas that set them, such as `Domain "bank.fi"`, `policy` where a module has, and
    empty where the default holds; `places` are file:line:column of each. What came from an older spool has those of the
    first four.
    """

    tls: str
    verify: str
    fallback: bool
    ca: str
    scopes: tuple[str, ...] = ("",) * 9
    places: tuple[str, ...] = ("",) * 9
    dane: str = "false"
    sts: bool = False
    names: str = ""
    spki: str = ""
    protocols: str = ""

    def __str__(self) -> str:
        more = f", use_dane = {self.dane}" if self.dane != "false" else ""
        return f"TLS = {self.tls}, TLS_Verify = {self.verify}{more}{', use_mta_sts = true' if self.sts else ''}"


@dataclass(slots=True, init=False)
class Batch:
    """One accepted transaction. Times are seconds since the epoch, sizes octets.

    `body` is the whole message in wire form without dot-stuffing or end mark; None while it is not resident. `path`
    names the file that holds a body over large_message_threshold. `eight_bit` tells of octets above 127. `tls_request`
    is what the sender wants of its way (RFC 8689): requiretls, no (TLS-Required: No), or empty. `left` counts the
    messages that are not done: with the last one the batch goes. `place` is the spool's note of where it lies,
    `digest` what evidence says of it.
    """

    id: MessageId
    sender: Mailbox
    origin: Origin
    received_at: float
    size: int
    body: bytes | None
    path: str
    eight_bit: bool
    tls_request: str
    left: int
    connection_context: Mapping[str, str]
    message_context: Mapping[str, str]
    place: Any = field(compare=False, repr=False)
    digest: Any = field(compare=False, repr=False)

    # written out, as that of Message, since the one of a dataclass is not compiled
    def __init__(
        self,
        id: MessageId,
        sender: Mailbox,
        origin: Origin,
        received_at: float,
        size: int,
        body: bytes | None,
        path: str = "",
        eight_bit: bool = False,
        tls_request: str = "",
        connection_context: Mapping[str, str] | None = None,
        message_context: Mapping[str, str] | None = None,
    ) -> None:
        self.id = id
        self.sender = sender
        self.origin = origin
        self.received_at = received_at
        self.size = size
        self.body = body
        self.path = path
        self.eight_bit = eight_bit
        self.tls_request = tls_request
        self.left = 1
        self.connection_context = connection_context if connection_context is not None else {}
        self.message_context = message_context if message_context is not None else {}
        self.place = None
        self.digest = None


@dataclass(slots=True, init=False)
class Message:
    """One recipient of a batch. `tries` counts finished attempts; `next_at` is the time of the next one.

    `routing_domain` is where the message goes: the recipient's domain, or a gateway as host or host:port. `routed` is
    the domain that a policy chose in place of the recipient's; `demand` what was demanded of its way when it came,
    which nothing weaker may replace. `via` is the recipient's domain where its own Domain stanza rules TLS although a
    gateway takes the mail. `override` is what delivery found out about TLS and AUTH of this message alone, in its own
    type, or the words of why it could not. `priority` 1 goes before others of its queue; `context` is what the message
    context of this message has beyond the batch's. `refused` is the reply with which a policy refused this recipient
    while others were accepted: it is owed a notification and no attempt. `notices` counts notifications that it is
    late.
    """

    id: MessageId
    batch: Batch
    recipient: Mailbox
    binding_group: str
    binding: str
    routing_domain: str
    via: str
    tries: int
    next_at: float
    last_reply: str
    override: Hashable
    priority: int
    context: Mapping[str, str]
    refused: str
    routed: str
    demand: TlsDemand | None
    notices: int

    def __init__(
        self,
        id: MessageId,
        batch: Batch,
        recipient: Mailbox,
        binding_group: str = "default",
        binding: str = "default",
        routing_domain: str = "",
        via: str = "",
        tries: int = 0,
        next_at: float = 0.0,
        last_reply: str = "",
        override: Hashable = None,
        priority: int = 0,
        context: Mapping[str, str] | None = None,
        refused: str = "",
        routed: str = "",
        demand: TlsDemand | None = None,
        notices: int = 0,
    ) -> None:
        self.id = id
        self.batch = batch
        self.recipient = recipient
        self.binding_group = binding_group
        self.binding = binding
        self.routing_domain = routing_domain
        self.via = via
        self.tries = tries
        self.next_at = next_at
        self.last_reply = last_reply
        self.override = override
        self.priority = priority
        self.context = context if context is not None else {}
        self.refused = refused
        self.routed = routed
        self.demand = demand
        self.notices = notices

    @property
    def destination(self) -> str:
        """Where it goes: `routing_domain`, or the recipient's domain where a spool has none."""
        return self.routing_domain or self.recipient.domain

    @property
    def wanted_domain(self) -> str:
        """The domain whose stanza is asked for a gateway."""
        return self.routed or self.recipient.domain

    def variables(self) -> dict[str, str]:
        """The message context of this message."""
        return {**self.batch.message_context, **self.context}
