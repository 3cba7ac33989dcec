"""Policy modules in Python: a file with functions, or one class with methods, named as the phases and hooks.

    from quillon.policy.python import Message, Session

    async def validate_mailfrom(session: Session) -> None:
        domain = session.message_context["mailfrom_domain"]
        if domain == "bank.fi" and "tls" not in session.connection_context:
            session.reject(550, "5.7.1 mail of bank.fi comes over TLS")
        if not await session.lookup(domain, "MX"):
            session.reject(450, "4.1.8 the sender's domain takes no mail")

Functions of the message phases take (session, message), those of the others (session). `Verdict.DONE` leaves out the
remaining modules of a phase; nothing or `Verdict.CONT` goes on. An `async` function may wait, and then only its own
session does. A policy in Python is part of the server: it may do whatever the server may, and a plain function holds up
its worker for as long as it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from quillon.policy.addresses import address_parts, mailbox_of, mailboxes_of
from quillon.policy.certificates import fingerprint, names_one_of
from quillon.policy.environment import Environment
from quillon.policy.hook import Call, Phase, Verdict, set_reply
from quillon.policy.message import MessageView

__all__ = [
    "Certificate",
    "Delivery",
    "Message",
    "Remote",
    "Session",
    "TlsParameters",
    "Verdict",
    "fingerprint",
    "names_one_of",
]


class Session:
    """The client of a callout. Contexts are dictionaries of strings, as the manual lists them."""

    def __init__(self, call: Call, environment: Environment) -> None:
        self._call = call
        self._environment = environment

    @property
    def remote(self) -> str:
        """The client's address and port."""
        return self._call.session.remote

    @property
    def ip(self) -> str:
        """The client's address."""
        return self._call.session.remote.rpartition(":")[0].strip("[]")

    @property
    def local(self) -> str:
        """The listener's address and port."""
        return self._call.session.local

    @property
    def connection_id(self) -> str:
        """As the logs print it."""
        return self._call.session.connection_id

    @property
    def command(self) -> str:
        """The command line, in the phases that have one."""
        return self._call.text

    @property
    def connection_context(self) -> dict[str, str]:
        """What is known of the connection, TLS verdict included; it lives as long as the connection."""
        return self._call.context.connection

    @property
    def message_context(self) -> dict[str, str]:
        """What is known of the message; it goes into the spool with it."""
        return self._call.context.message

    @property
    def auth_mechanism(self) -> str:
        """In core_validate_auth_hook: the SASL mechanism."""
        return self._call.auth.mechanism if self._call.auth else ""

    @property
    def auth_user(self) -> str:
        """In core_validate_auth_hook: the user, which may be empty."""
        return self._call.auth.user if self._call.auth else ""

    @property
    def auth_status(self) -> str:
        """In core_validate_auth_hook: pass, fail or error."""
        return self._call.auth.status if self._call.auth else ""

    @property
    def recipients(self) -> list[str]:
        """The recipients of the transaction so far."""
        return [str(mailbox) for mailbox in self._call.session.recipients]

    def set_recipients(self, addresses: Sequence[str]) -> None:
        """Other recipients, from validate_rcptto_list to validate_data_spool. Raises ValueError."""
        if self._call.phase not in (Phase.RCPTTO_LIST, Phase.RCPTTO_LIST_FINAL, Phase.DATA, Phase.DATA_SPOOL):
            raise ValueError(f"the recipients cannot be changed in {self._call.phase.value}")
        self._call.session.recipients.replace(mailboxes_of(list(addresses)))

    def reject(self, code: int, text: str) -> None:
        """Answer with this code and text; from 400 on that ends the phase. Raises ValueError for no SMTP code."""
        set_reply(self._call.context, code, text, disconnect=False)
        self._call.context.place = _caller()

    def disconnect(self, code: int, text: str) -> None:
        """Answer and close."""
        set_reply(self._call.context, code, text, disconnect=True)
        self._call.context.place = _caller()

    def tarpit(self, seconds: float) -> None:
        """Slow the session down: each answer from here on waits so many seconds."""
        self._call.session.delay = min(max(float(seconds), 0.0), 60.0)

    def capability_add(self, keyword: str) -> None:
        """Offer one more keyword at EHLO. Raises ValueError."""
        self._call.session.capability_add(keyword)

    def capability_remove(self, keyword: str) -> None:
        """Offer a keyword of EHLO no more."""
        self._call.session.capability_remove(keyword)

    async def lookup(self, name: str, kind: str = "A") -> list[str]:
        """Ask DNS for A, AAAA, TXT, MX, PTR or NS records, best first; an empty list where there is no answer."""
        found = await self._environment.lookup(name, kind, "")
        return [text for _, text in found.records]

    async def send(self, sender: str, recipients: Sequence[str], data: bytes) -> None:
        """Send a message of one's own: it is in the spool when this returns. Raises ValueError, PolicyError."""
        await self._environment.inject(mailbox_of(sender), mailboxes_of(list(recipients)), data)


class Message:
    """The message of a callout."""

    def __init__(self, view: MessageView) -> None:
        self._view = view

    @property
    def message_id(self) -> str:
        """The id of this recipient's message, from validate_data_spool_each_rcpt on."""
        return self._view.message_id

    @property
    def batch_id(self) -> str:
        """The id of the transaction."""
        return self._view.batch_id

    @property
    def sender(self) -> str:
        """The envelope sender."""
        return self._view.sender

    @property
    def recipient(self) -> str:
        """The envelope recipient; the first one before validate_data_spool_each_rcpt."""
        return self._view.recipient

    @property
    def size(self) -> int:
        """Octets; 0 before the data."""
        return self._view.size

    @property
    def body(self) -> bytes:
        """What stands behind the header section. Setting it raises ValueError in a phase that may not edit."""
        return self._view.content.body

    @body.setter
    def body(self, data: bytes) -> None:
        self._view.set_body(data)

    @property
    def data(self) -> bytes:
        """The whole message. Setting it raises ValueError in a phase that may not edit."""
        return self._view.content.whole

    @data.setter
    def data(self, data: bytes) -> None:
        self._view.set_whole(data)

    def header(self, name: str) -> list[str]:
        """Decoded values of a header field; empty before the data."""
        return self._view.header(name)

    def addresses(self, name: str, part: str = "all") -> list[str]:
        """A part (all, localpart, user, detail, domain) of each address in a header field."""
        return address_parts(self._view.raw_header(name), part)

    def set_header(self, name: str, value: str | Sequence[str], mode: str = "replace") -> None:
        """Replace all fields of a name, or `append`, `prepend`. Raises ValueError."""
        self._view.set_header(name, [value] if isinstance(value, str) else list(value), mode)

    def remove_header(self, name: str) -> bool:
        """Take all fields of a name away; whether there was one. Raises ValueError."""
        return self._view.remove_header(name)

    def discard(self, reason: str = "") -> None:
        """Answer 250 and keep nothing but a line in the rejectlog; a reason begins with an SMTP code."""
        self._view.discard(reason)

    def set_recipient(self, address: str) -> None:
        """Another recipient, in validate_data_spool_each_rcpt. Raises ValueError."""
        if not self._view.own_copy:
            raise ValueError("the recipient cannot be changed in this phase")
        self._view.recipient = str(mailboxes_of([address])[0])

    def set_binding(self, name: str) -> None:
        """The binding, in validate_set_binding."""
        self._view.binding = name

    def set_binding_group(self, name: str) -> None:
        """A binding of this group, in validate_set_binding."""
        self._view.binding_group = name

    def set_routing_domain(self, name: str) -> None:
        """Where it goes instead of to the recipient's domain."""
        self._view.routing_domain = name.lower()

    def set_priority(self, priority: int) -> None:
        """In validate_set_binding: 1 lets it go before others of its queue. Raises ValueError."""
        if priority not in (0, 1):
            raise ValueError("a priority is 0 or 1")
        self._view.priority = priority


def _caller() -> str:
    """File and line of the policy that called."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass(slots=True)
class TlsParameters:
    """What get_inbound_tls_parameters and get_outbound_tls_parameters may change; see `quillon.policy.tls`."""

    use_tls: str
    tls_verify: str
    certfile: str
    keyfile: str
    ca: str
    cipherlist: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a peer presented; all empty if nothing. `names` are entries such as `DNS:mx.bank.fi`, `anchor` is the
    SHA-256 of the trusted certificate that a verified chain leads to."""

    subject: str
    issuer: str
    sha256: str
    spki_sha256: str
    names: tuple[str, ...]
    cause: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a delivery is going."""

    host: str
    ip: str
    domain: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way out, in hooks of delivery: its context can be read and set."""

    message: Message
    connection_context: dict[str, str]
    message_context: dict[str, str]
