"""What a policy decides on the TLS of one message (hook get_outbound_tls_parameters)."""

from __future__ import annotations

from quillon.config.settings import OutboundTls
from quillon.mail.message import Message
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, Session
from quillon.policy.message import Content, MessageView
from quillon.policy.tls import HookFailed, TlsHooks


def of(message: Message, tls: OutboundTls, hooks: TlsHooks) -> OutboundTls | str | None:
    """Other settings than those configured, or None; words if policy fails, with which the message has to wait.

    The message is shown without its header, which may not be resident.
    """
    try:
        found = hooks.outbound_parameters(call_about(message, Hook.OUTBOUND_PARAMETERS), tls)
    except HookFailed as error:
        return str(error)
    return found if found != tls else None


def call_about(message: Message, hook: Hook) -> Call:
    """The arguments of a question about a message that waits or is on its way; its header is not at hand."""
    batch = message.batch
    view = MessageView(
        message_id=str(message.id),
        batch_id=str(batch.id),
        connection_id=str(batch.origin.connection_id),
        sender=str(batch.sender),
        recipient=str(message.recipient),
        content=Content(b"", batch.size),
        binding_group=message.binding_group,
        binding=message.binding,
        routing_domain=message.routing_domain,
    )
    context = Context(dict(batch.connection_context), message.variables())
    ip = batch.origin.source_ip
    remote = f"[{ip}]:0" if ":" in ip else f"{ip}:0"
    session = Session(remote, "", str(batch.origin.connection_id), batch.origin.protocol)
    return Call(hook, session, context, "", view)
