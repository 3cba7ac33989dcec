"""What a policy decides on the TLS of one message (hook get_outbound_tls_parameters)."""

from __future__ import annotations

from quillon.config.settings import OutboundTls
from quillon.mail.message import Message
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, MessageView, Session
from quillon.policy.tls import HookFailed, TlsHooks


def of(message: Message, tls: OutboundTls, hooks: TlsHooks) -> OutboundTls | str | None:
    """Other settings than those configured, or None; words if policy fails, with which the message has to wait.

    The message is shown without its header, which may not be resident.
    """
    batch = message.batch
    view = MessageView(
        str(message.id),
        str(batch.id),
        str(batch.origin.connection_id),
        str(batch.sender),
        str(message.recipient),
        b"",
        batch.size,
        message.binding_group,
        message.binding,
        message.routing_domain,
    )
    context = Context(dict(batch.connection_context), dict(batch.message_context))
    session = Session(batch.origin.source_ip, "", str(batch.origin.connection_id), batch.origin.protocol)
    try:
        found = hooks.outbound_parameters(Call(Hook.OUTBOUND_PARAMETERS, session, context, "", view), tls)
    except HookFailed as error:
        return str(error)
    return found if found != tls else None
