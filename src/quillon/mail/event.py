"""What happened, for the logs. Only these types are logged; `quillon.log.lines` renders them.

Times are seconds since the epoch. `TlsFacts` is what a finished or failed handshake leaves for logs and scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from quillon.mail.message import Message, MessageId, Origin, TlsDemand
from quillon.mail.outcome import Delivered, PermanentFailure, TransientFailure
from quillon.mail.reply import Reply


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """`verified` tells whether the other side has proven who it is, None where nothing was to be verified: a host by a
    trusted chain and its name, a client by a trusted chain. `cause` is the cause code of what went wrong, or empty.

    `level` is what was proven: none, ca (a trusted chain), host (and a name that was wanted), dane (the certificate of
    a TLSA record), or policy (a module says so). `matched` is the wanted name that the certificate has, or that record;
    `anchor` the subject of the trusted certificate that the chain leads to, `anchor_sha256` its fingerprint. `standard`
    is dane or mta-sts where that demanded more than the configuration. `ends` is when the other side's certificate
    does, in seconds since the epoch, 0 where there is none. `certificates` are the SHA-256 of all that the
    other side sent, where evidence is kept of them.
    """

    protocol: str = ""
    cipher: str = ""
    bits: int = 0
    group: str = ""
    verified: bool | None = None
    cause: str = ""
    detail: str = ""
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    algorithm_bits: int = 0
    subject_cn: str = ""
    issuer_cn: str = ""
    resumed: bool = False
    level: str = "none"
    matched: str = ""
    anchor: str = ""
    anchor_sha256: str = ""
    standard: str = ""
    ends: float = 0.0
    certificates: tuple[str, ...] = ()


class Received(NamedTuple):
    """A message was accepted: the spool has it."""

    time: float
    message: Message
    tls: TlsFacts | None


class Attempted(NamedTuple):
    """An attempt to deliver ended. `demand` is what ruled it; `local_ip` the source address that was used, or wanted
    where no connection came about. `reasons` are those of the demand on the host, the winner first; `would_wait` is the
    cause why the message would not have gone, had TLS_Enforce not said to report it only."""

    time: float
    message: Message
    outcome: Delivered | TransientFailure | PermanentFailure
    demand: TlsDemand
    tls: TlsFacts | None
    host: str = ""
    local_ip: str = ""
    reasons: tuple[str, ...] = ()
    would_wait: str = ""


class HostFailed(NamedTuple):
    """A host has not come to the point of taking mail, and the next one was tried, or the attempt was over. `domain` is
    the routing domain, `host` the host's name."""

    time: float
    domain: str
    host: str
    outcome: TransientFailure | PermanentFailure
    tls: TlsFacts | None
    local_ip: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A client was told no. `state` is a reception state of the log formats chapter, `module` the policy module that
    refused, or core, or tls_contract, which has a `cause` and the label of the `contract`."""

    time: float
    remote: str
    local: str
    connection_id: MessageId
    pathway: str
    pathway_group: str
    state: str
    reply: Reply
    module: str
    connection_context: Mapping[str, str]
    message_context: Mapping[str, str]
    tls: TlsFacts | None = None
    cause: str = ""
    contract: str = ""


class Discarded(NamedTuple):
    """A message, or one recipient of it, was accepted and dropped because policy said so: a line of the rejectlog."""

    time: float
    remote: str
    local: str
    origin: Origin
    reply: Reply
    module: str
    connection_context: Mapping[str, str]
    message_context: Mapping[str, str]


class Authenticated(NamedTuple):
    """An attempt to authenticate ended: a line of the acctlog. `timed_out` where the client did not go on."""

    time: float
    local: str
    remote: str
    user: str
    ok: bool
    mechanism: str
    connection_id: MessageId
    timed_out: bool = False


class Authorized(NamedTuple):
    """A user has given a command of the console, where rules say who may: a line of the acctlog. `result` is 1 where he
    may, 0 where he may not, -1 where that could not be found out; `role` is what lets him."""

    time: float
    listen: str
    peer: str
    user: str
    result: int
    command: str
    role: str


@dataclass(frozen=True, slots=True)
class Handshaken:
    """An inbound handshake ended, well or not."""

    time: float
    remote: str
    local: str
    connection_id: MessageId
    tls: TlsFacts
    ok: bool


class TlsReported(NamedTuple):
    """Somebody has told what he saw of the TLS of a domain of ours on a day (RFC 8460): under one `policy` so many
    sessions that went well, so many that did not, and `failures` as result type, host and number."""

    time: float
    submitter: str
    day: str
    domain: str
    policy: str
    good: int
    bad: int
    failures: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Panic:
    """Something an operator has to know. `text` is `facility: what happened`, one line."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A step in the life of the server: started, reloaded, drained."""

    time: float
    text: str


Event = (
    Received
    | Attempted
    | HostFailed
    | Rejected
    | Discarded
    | Authenticated
    | Authorized
    | Handshaken
    | TlsReported
    | Panic
    | Notice
)
