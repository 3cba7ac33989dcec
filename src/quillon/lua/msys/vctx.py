"""`vctx` and `ac`: the context of a session, its reply, its recipients, its EHLO keywords."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quillon.lua.msys.api import Api, Handle, Library, from_octets, number_text, to_octets
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply
from quillon.policy.addresses import mailboxes_of
from quillon.policy.hook import Call, Phase, reply_of, set_reply

library = Library()
SERVICES = ("SMTP", "ECStream", "Control", "ECmmove2", "ECCluster", "inbound_cidr")
LONGEST_TARPIT = 60.0  # seconds
# What a context holds is not in the memory that Lua's limit counts.
LONGEST_VALUE, LONGEST_KEY = 65536, 256  # characters
MOST_KEYS = 1000

_CONNECTION = (1, "VCTX_CONN", "ECMESS_CTX_CONN")
_MESSAGE = (2, "VCTX_MESS", "ECMESS_CTX_MESS")
_LIST_PHASES = (
    Phase.RCPTTO,
    Phase.RCPTTO_LIST,
    Phase.RCPTTO_LIST_FINAL,
    Phase.DATA,
    Phase.DATA_SPOOL,
    Phase.EACH_RCPT,
)


def dictionary(handle: Handle, kind: object) -> dict[str, str]:
    """The connection or message context. Raises ValueError for a kind that is neither."""
    context = handle.call.context
    if kind in _MESSAGE:
        return context.message
    if kind in _CONNECTION:
        return context.connection
    raise ValueError("the first argument is msys.core.VCTX_CONN or msys.core.VCTX_MESS")


# the next two are called most of all: what is plain text already goes the short way


@library.raw("vctx:get")
def get(handle: Handle, kind: object, key: object) -> str | None:
    """The value of a key of the connection or message context, or nil."""
    if type(key) is not str or not key.isascii():
        key = from_octets(number_text(key))
    value = dictionary(handle, kind).get(key)
    return value if value is None or value.isascii() else to_octets(value)


@library.raw("vctx:set")
def put(handle: Handle, kind: object, key: object, value: object) -> None:
    """Set a key of the connection or message context."""
    if type(key) is not str or not key.isascii():
        key = from_octets(number_text(key))
    if type(value) is not str or not value.isascii():
        value = from_octets(number_text(value))
    context = dictionary(handle, kind)
    if len(value) > LONGEST_VALUE:
        raise ValueError(f"a value of a context has {LONGEST_VALUE} characters at most")
    if key not in context and (len(context) >= MOST_KEYS or len(key) > LONGEST_KEY or not key.isprintable()):
        raise ValueError(f"a context has {MOST_KEYS} keys at most, of {LONGEST_KEY} printable characters")
    context[key] = value


def delete(handle: Handle, kind: object, key: object) -> int:
    """Delete a key; 1 if it was there, else 0."""
    return 1 if dictionary(handle, kind).pop(from_octets(number_text(key)), None) is not None else 0


def code_of(code: object) -> int:
    """A reply code, given as a number or as text (sheet P3). Raises ValueError."""
    text = number_text(code)
    if not text.isdigit():
        raise ValueError(f"{text!r} is no SMTP reply code")
    return int(text)


@library.function("vctx:set_code")
def set_code(handle: Handle, code: object, text: object = "") -> None:
    """What is answered in this phase; from 400 on a refusal."""
    call = handle.call
    set_reply(call.context, code_of(code), number_text(text), disconnect=False)


@library.function("vctx:disconnect")
def disconnect(handle: Handle, code: object, text: object = "") -> None:
    """Answer, and close the connection."""
    call = handle.call
    set_reply(call.context, code_of(code), number_text(text), disconnect=True)


@library.function("vctx:tarpit")
def tarpit(handle: Handle, seconds: float) -> None:
    """Slow the session down: each answer from here on waits so many seconds."""
    call = handle.call
    if not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST_TARPIT:
        raise ValueError(f"a tarpit takes 0 to {LONGEST_TARPIT:.0f} seconds")
    call.session.delay = float(seconds)


@library.function("vctx:exists")
def exists(handle: Handle, kind: float, key: str) -> int:
    """1 where a context has the key, else 0."""
    context = handle.call.context
    return int(key in (context.connection if kind == 1 else context.message))


@library.function("ac:has_message")
def has_message(handle: Handle) -> bool:
    """Whether there is a message in this phase, which ac.message gives."""
    return handle.call.message is not None


@library.function("vctx.code")
def code(handle: Handle) -> int:
    """The code of the answer set so far, or 250."""
    call = handle.call
    return call.context.reply.code if call.context.reply else 250


@library.function("vctx.note")
def note(handle: Handle) -> str:
    """The text of the answer set so far."""
    call = handle.call
    return call.context.reply.text if call.context.reply else ""


def answer(handle: Handle) -> Reply:
    return handle.call.context.reply or reply_of(250, "")


@library.function("vctx.code=")
def set_field_code(handle: Handle, code: object) -> None:
    """The code of the answer, as `set_code` sets it."""
    context = handle.call.context
    text = answer(handle).text
    context.reply = reply_of(code_of(code), "" if text == replies.NO_TEXT else text)


@library.function("vctx.note=")
def set_field_note(handle: Handle, text: object) -> None:
    """The text of the answer."""
    context = handle.call.context
    context.reply = reply_of(answer(handle).code, number_text(text))


@library.function("vctx.disconnect=")
def set_field_disconnect(handle: Handle, on: object) -> None:
    """Whether the connection will be closed behind the answer: 1 or 0."""
    handle.call.context.disconnect = bool(on)


@library.function("vctx.disconnect_set")
def disconnecting(handle: Handle) -> bool:
    """Whether the connection will be closed behind the answer."""
    call = handle.call
    return call.context.disconnect


def change(call: Call, recipients: Iterable[Mailbox]) -> None:
    if call.phase not in _LIST_PHASES:
        raise ValueError(f"the recipients cannot be changed in {call.phase.value}")
    call.session.recipients.replace(recipients)


@library.function("vctx:add_recipient")
def add_recipient(handle: Handle, addresses: Any) -> None:
    """Add an address, or a table of them, to the recipients."""
    call = handle.call
    change(call, [*call.session.recipients, *mailboxes_of(addresses)])


@library.function("vctx:remove_recipient")
def remove_recipient(handle: Handle, addresses: Any) -> None:
    """Take an address, or a table of them, from the recipients; one that is not there does no harm."""
    call = handle.call
    if call.phase is Phase.MAILFROM:
        return
    gone = set(mailboxes_of(addresses))
    change(call, [mailbox for mailbox in call.session.recipients if mailbox not in gone])


@library.function("vctx:recipient_list")
def recipient_list(handle: Handle, addresses: Any = None) -> Any:
    """The recipients, as a table that begins at 0; or other recipients in their place."""
    call = handle.call
    if addresses is None:
        return {n: str(mailbox) for n, mailbox in enumerate(call.session.recipients)}
    if call.phase is Phase.RCPTTO:
        raise ValueError("the list cannot be replaced in validate_rcptto")
    change(call, mailboxes_of(addresses))
    return None


@library.function("ac:esmtp_capability_add")
def capability_add(handle: Handle, name: str) -> None:
    """Offer one more keyword at EHLO."""
    call = handle.call
    call.session.capability_add(name)


@library.function("ac:esmtp_capability_remove")
def capability_remove(handle: Handle, name: str) -> None:
    """Offer a keyword of EHLO no more."""
    call = handle.call
    call.session.capability_remove(name)


@library.of_api("ac:inbound_session_count")
def session_count(api: Api, handle: Handle, block: str = "", service: str = "SMTP") -> int:
    """Open sessions of this worker, of an address block (`/24` and `/32` are of the client's address)."""
    if service not in SERVICES and service:
        raise ValueError(f"{service!r} is no service: {', '.join(SERVICES)}")
    return api.environment.sessions(service or "SMTP", peer_block(handle, block or ""))


@library.function("ac.remote_addr")
def remote_addr(handle: Handle) -> str:
    """The client's address and port."""
    call = handle.call
    return call.session.remote


@library.function("ac.conn_id")
def conn_id(handle: Handle) -> str:
    """The id of the connection, as the logs print it."""
    call = handle.call
    return call.session.connection_id


@library.function("ac.protocol")
def protocol(handle: Handle) -> str:
    """msys.core.P_ESMTP."""
    call = handle.call
    return call.session.protocol


@library.function("ac.inst")
def inst(handle: Handle) -> dict[str, str]:
    """The listener; `address` is its address and port."""
    call = handle.call
    return {"address": call.session.local}


def peer_block(handle: Handle, block: str) -> str:
    """An address block out of `/24`, `addr/24`, `addr` or nothing, which is the client's address."""
    ip = handle.call.session.remote.rpartition(":")[0].strip("[]")
    if not block:
        return ip
    return ip + block if block.startswith("/") else block
