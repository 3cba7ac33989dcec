"""`msg`: envelope, header, body, context, binding, and new messages."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from quillon.lua.msys import vctx
from quillon.lua.msys.api import Api, Library, Object, number_text
from quillon.lua.msys.pcre import match_table, replaced
from quillon.mail.reply import parse_reply
from quillon.policy.addresses import address_parts, mailbox_of, mailboxes_of
from quillon.policy.context import Context
from quillon.policy.hook import Call, Phase, Session, reply_of
from quillon.policy.message import Content, MessageView

END_MARK = b".\r\n"
library = Library()
_SETTING_BINDING = (Phase.SET_BINDING,)


@library.function("msg.priority")
def priority(call: Call) -> int:
    """1 for a message that goes before others, else 0."""
    return call.view.priority


@library.function("msg.priority=")
def set_priority(call: Call, value: int) -> None:
    """In validate_set_binding: 1 lets the message go before others of its queue."""
    if call.phase not in _SETTING_BINDING or value not in (0, 1):
        raise ValueError("msg.priority is set to 0 or 1 in validate_set_binding")
    call.view.priority = value


@library.function("msg:mailfrom")
def mailfrom(call: Call, address: str | None = None) -> str:
    """The sender; another one where the message may be changed, in rcptto and in set_binding."""
    if address is not None:
        if call.phase not in (Phase.RCPTTO, Phase.SET_BINDING):
            _may_change(call, "the sender")
        call.view.sender = str(mailbox_of(address))
    return call.view.sender


@library.function("msg:rcptto")
def rcptto(call: Call, address: str | None = None) -> str:
    """The recipient; another one from validate_data_spool_each_rcpt on."""
    if address is not None:
        if not call.view.own_copy:
            raise ValueError(f"the recipient cannot be changed in {call.phase.value}")
        call.view.recipient = str(mailboxes_of([address])[0])
    return call.view.recipient


@library.function("msg:envelope")
def envelope(call: Call, flags: int) -> tuple[str, str]:
    """What get_envelope2 puts into its buffers."""
    address = call.view.sender if flags & 1 else call.view.recipient
    if flags & 3 not in (1, 2):
        raise ValueError("get_envelope2: give EC_MSG_ENV_FROM or EC_MSG_ENV_TO")
    if flags & 4:
        return address, ""
    local, _, domain = address.rpartition("@")
    return (local, domain) if local or domain else (address, "")


@library.function("msg:reception_peer")
def reception_peer(call: Call, flag: str = "all") -> str:
    """The client's `ip`, `port` or `all` of both."""
    return endpoint(call.session.remote, flag)


@library.function("msg:listener_addr")
def listener_addr(call: Call, flag: str = "all") -> str:
    """The listener's `ip`, `port` or `all` of both."""
    return endpoint(call.session.local, flag)


@library.function("msg:get_message_size")
def size(call: Call) -> int:
    """Octets."""
    return call.view.size


@library.function("msg:get_delivery_method")
def delivery_method(call: Call) -> str:
    """How it is delivered: esmtp."""
    return "esmtp"


@library.function("msg:is_mcmt")
def is_mcmt(call: Call) -> bool:
    """false: there is no multi-channel mail here."""
    return False


@library.function("msg:routing_domain")
def routing_domain(call: Call, name: str | None = None) -> str | None:
    """Where the message goes instead of to its recipient's domain."""
    if name is not None:
        if call.phase not in (Phase.SET_BINDING, Phase.EACH_RCPT, Phase.RCPTTO):
            raise ValueError(f"the routing domain cannot be chosen in {call.phase.value}")
        call.view.routing_domain = name.lower()
    return call.view.routing_domain or None


for _name, _attribute, _doc in (
    ("msg.id", "message_id", "The message id, as the logs print it; empty before the recipient has one."),
    ("msg.batch_id", "batch_id", "The id of the transaction."),
    ("msg.conn_id", "connection_id", "The id of the connection."),
):
    library.function(_name, doc=_doc)(attrgetter(f"view.{_attribute}"))


def _chosen(api: Api, call: Call, name: str, value: str | None) -> str | None:
    if value is not None:
        if call.phase not in _SETTING_BINDING:
            raise ValueError(f"msg:{name} is chosen in validate_set_binding")
        setattr(call.view, name, number_text(value))
    chosen: str = getattr(call.view, name)
    return chosen if chosen in api.environment.bindings[name] else None


@library.of_api("msg:binding")
def binding(api: Api, call: Call, value: str | None = None) -> str | None:
    """Choose by name, in validate_set_binding; the name chosen, or nil. Mail for which nothing but a name that does not
    exist has been chosen is a 451."""
    return _chosen(api, call, "binding", value)


@library.of_api("msg:binding_group")
def binding_group(api: Api, call: Call, value: str | None = None) -> str | None:
    """As `msg:binding`, for a group of them."""
    return _chosen(api, call, "binding_group", value)


def _may_change(call: Call, what: str) -> None:
    if not call.view.may_edit:
        raise ValueError(f"{what} cannot be changed in {call.phase.value}")


def endpoint(text: str, flag: str) -> str:
    """`ip`, `port` or `all` of an endpoint as ip:port. Raises ValueError."""
    ip, _, port = text.rpartition(":")
    found = {"ip": ip.strip("[]"), "port": port, "all": text}
    if flag not in found:
        raise ValueError(f"{flag!r}: it is ip, port or all")
    return found[flag]


library.raw("msg:context_set")(vctx.put)
library.raw("msg:context_delete")(vctx.delete)


@library.raw("msg:context_get")
def context_get(call: Call, kind: object, key: object) -> str:
    """The value of a key, or ''."""
    return vctx.get(call, kind, key) or ""


@library.raw("msg:context_exists")
def context_exists(call: Call, kind: object, key: object) -> int:
    """1 or 0."""
    return int(vctx.get(call, kind, key) is not None)


@library.raw("msg:context_exists_and_get")
def context_exists_and_get(call: Call, kind: object, key: object) -> tuple[int, str | None]:
    """1 and the value, or 0 and nil."""
    value = vctx.get(call, kind, key)
    return int(value is not None), value


@library.function("msg:header")
def header(call: Call, name: str, value: Any = None, mode: str | None = None) -> Any:
    """The decoded values; with "" delete; with a value, or a table of them, replace, append or prepend."""
    view = call.view
    if value is None:
        return view.header(name)
    if value == "" and mode is None:
        return view.remove_header(name)
    view.set_header(name, texts(value), mode or "replace")
    return True


@library.function("msg:address_header")
def address_header(call: Call, name: str, part: str = "all") -> list[str]:
    """A part (all, localpart, user, detail, domain) of each address in a header field."""
    return address_parts(call.view.raw_header(name), part)


def texts(value: Any) -> list[str]:
    """A value, or a table of values, as text."""
    if isinstance(value, dict):
        value = list(value.values())
    return [number_text(item) for item in (value if isinstance(value, list) else [value])]


@library.function("msg:body", octets=True)
def body(call: Call, value: bytes | None = None) -> bytes:
    """The body as it came, without header and end mark; or another one."""
    if value is not None:
        call.view.set_body(value)
    return call.view.content.body


@library.function("msg:raw", octets=True)
def raw(call: Call, value: bytes | None = None) -> tuple[bytes, int]:
    """The whole message and its size; or another one."""
    if value is not None:
        call.view.set_whole(value)
    data = call.view.content.whole
    return data, len(data)


@library.function("msg:body_match", octets=True)
def body_match(call: Call, pattern: bytes) -> Any:
    """The matches of a regular expression in the body, or false."""
    return match_table(call.view.content.body + END_MARK, pattern) or False


@library.function("msg:raw_match", octets=True)
def raw_match(call: Call, pattern: bytes) -> Any:
    """The matches of a regular expression in the whole message, or false."""
    return match_table(call.view.content.whole + END_MARK, pattern) or False


@library.function("msg:body_replace", octets=True)
def body_replace(call: Call, pattern: bytes, replacement: bytes) -> bool:
    """Replace what a regular expression finds in the body, at whose end stands the end mark."""
    before = call.view.content.body + END_MARK
    after = replaced(before, pattern, replacement)
    if after != before:
        call.view.set_body(after)
    return after != before


@library.function("msg:raw_replace", octets=True)
def raw_replace(call: Call, pattern: bytes, replacement: bytes) -> bool:
    """Replace what a regular expression finds in the whole message."""
    before = call.view.content.whole + END_MARK
    after = replaced(before, pattern, replacement)
    if after != before:
        call.view.set_whole(after)
    return after != before


@library.function("msg:code")
def code(call: Call, number: Any = None, text: str = "") -> str:
    """The reply set for the message; or set it, with 0 the number is taken from the text."""
    view = call.view
    if number is not None:
        if call.phase is Phase.SET_BINDING:
            raise ValueError("msg:code cannot be used in validate_set_binding")
        given = vctx.code_of(number)
        view.reply = reply_of(given, text) if given else parse_reply(text)
    return str(view.reply) if view.reply else ""


@library.function("msg:get_code")
def get_code(call: Call) -> str | None:
    """The reply set for the message; after an attempt what the remote host said. Nil if there is none."""
    return str(call.view.reply) if call.view.reply else None


@library.function("msg:set_code")
def set_code(call: Call, number: Any, text: str = "") -> int:
    """Set it, with 0 the number is taken from the text; the code before, 0 if there was none, -1 for no code."""
    before = call.view.reply
    try:
        given = vctx.code_of(number)
        call.view.reply = reply_of(given, text) if given else parse_reply(text)
    except ValueError:
        return -1
    return before.code if before is not None else 0


@library.function("msg:discard")
def discard(call: Call, reason: str = "") -> None:
    """Answer 250, keep nothing, and write a line to the rejectlog with this reason."""
    if call.phase is Phase.SET_BINDING:
        raise ValueError("msg:discard cannot be used in validate_set_binding")
    call.view.discard(reason)


def new_message(api: Api) -> Call:
    """An empty message of a script's own, behind the same kind of handle as one that came in."""
    session = api.call.session if api.call else Session("127.0.0.1:0", "127.0.0.1:0", "")
    context = Context(connection=dict(api.call.context.connection) if api.call else {})
    view = MessageView("", "", session.connection_id, "", "", Content(b"", 0), may_edit=True, own_copy=True)
    return Call(Phase.DATA_SPOOL, session, context, "", view)


@library.of_api("msys.core.ec_message_new")
def ec_message_new(api: Api, source: Any = None) -> Object:
    """An empty message, for msg:build and msg:inject."""
    return Object("msg", new_message(api))


@library.of_api("msg:copy")
def copy(api: Api, call: Call) -> Object:
    """A message with the same content and context, of its own from here on."""
    whole = call.view.content.whole
    if not whole:
        raise ValueError("the message is not at hand here")
    made = new_message(api)
    view = made.view
    view.content.whole = whole
    view.sender, view.recipient = call.view.sender, call.view.recipient
    made.context.message.update(call.context.message)
    return Object("msg", made)


@library.of_api("msg:inject")
async def inject(api: Api, call: Call, sender: str, recipients: str) -> bool:
    """Send a message: it is in the spool when this returns. Several recipients have commas between them."""
    data = call.view.content.whole
    if not data:
        raise ValueError("the message is empty; build it first")
    await api.environment.inject(mailbox_of(sender), mailboxes_of(recipients), data)
    return True
