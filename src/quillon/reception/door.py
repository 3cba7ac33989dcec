"""The door: every message that Quillon takes responsibility for comes through `Door.accept`.

Order: content rules, policy (data, data_spool, set_binding per recipient), spool commit, log, queue; then the reply.
Nothing is acknowledged before the commit has returned, and a message that cannot be stored is answered 451.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quillon.config.model import Config
from quillon.config.settings import NodeSettings, ReceptionSettings
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox, is_domain
from quillon.mail.event import Event, Panic, Received, TlsFacts
from quillon.mail.message import Batch, IdSource, Message, MessageId, Origin
from quillon.mail.reply import Reply
from quillon.net.clock import Clock
from quillon.policy.context import Context
from quillon.policy.hook import Call, MessageView, Phase, Policy, Session
from quillon.reception import content
from quillon.reception.intake import Intake
from quillon.spool.store import Store


class Envelope(NamedTuple):
    """One transaction as the client gave it."""

    batch_id: MessageId
    sender: Mailbox
    recipients: Sequence[Mailbox]
    origin: Origin
    session: Session
    tls: TlsFacts | None


class Residents:
    """Counts bodies in memory against max_resident_messages. 0: no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def admit(self, batch: Batch) -> None:
        """Keep the body of a batch that is on disk, or let it go."""
        if batch.body is None:
            return
        if self.limit and self.count >= self.limit:
            batch.body = None
        else:
            self.count += 1

    def release(self, batch: Batch) -> None:
        """A batch is done, or its body is not needed for now."""
        if batch.body is not None:
            batch.body = None
            self.count -= 1


class Door:
    """`enqueue` puts stored messages into their queues; `log` takes events."""

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        store: Store,
        ids: IdSource,
        clock: Clock,
        residents: Residents,
        enqueue: Callable[[list[Message]], None],
        log: Callable[[Event], None],
    ) -> None:
        self.config = config
        self.policy = policy
        self.node: NodeSettings = config.node()
        self.bindings = config.bindings()
        self.ids = ids
        self.store = store
        self.residents = residents
        self._clock = clock
        self._enqueue = enqueue
        self._log = log

    def reconfigure(self, config: Config, policy: Policy) -> None:
        """Use another configuration for messages that come from now on."""
        self.config, self.policy, self.node, self.bindings = config, policy, config.node(), config.bindings()

    def accept(
        self,
        envelope: Envelope,
        intake: Intake,
        settings: ReceptionSettings | None,
        context: Context,
        answer: Callable[[Reply], None],
    ) -> None:
        """Take a message, or refuse it; `answer` is called once, after the commit where there is one.

        `settings` is None for what Quillon writes itself, which is under no rule of reception.
        """
        intake.complete()
        refusal = self._refusal(envelope, intake, settings, context)
        messages: list[Message] = []
        if refusal is None:
            found = self._bind(envelope, intake, context)
            if isinstance(found, Reply):
                refusal = found
            else:
                messages = found
        if refusal is not None:
            intake.discard()
            answer(refusal)
            return
        body, path = intake.finish()
        batch = messages[0].batch
        batch.body, batch.path, batch.size = body, path, intake.size

        def stored(error: Exception | None) -> None:
            if error is not None:
                if path:
                    self.store.drop_body_file(path)
                answer(replies.SPOOL_FAILED)
                return
            self.residents.admit(batch)
            now = self._clock.now()
            for message in messages:
                self._log(Received(now, message, envelope.tls))
            self._enqueue(messages)
            answer(Reply(250, "2.0.0", f"OK {batch.id}"))

        self.store.insert(batch, messages, stored)

    def _refusal(
        self, envelope: Envelope, intake: Intake, settings: ReceptionSettings | None, context: Context
    ) -> Reply | None:
        if intake.failed is not None:
            self._log(Panic(self._clock.now(), f"spool: cannot write a body: {intake.failed.strerror}"))
            return replies.SPOOL_FAILED
        if settings is None:
            return None
        reply = replies.HEADERS_TOO_LARGE if intake.head_too_large else content.fault(intake.head, settings)
        if reply is None and intake.long_line:
            reply = replies.BODY_LINE_TOO_LONG
        for phase in (Phase.DATA, Phase.DATA_SPOOL):
            if reply is None and self.policy.has(phase):
                view = _view(envelope, intake, envelope.batch_id, envelope.recipients[0])
                reply = self.policy.run(Call(phase, envelope.session, context, message=view))
        return reply

    def _bind(self, envelope: Envelope, intake: Intake, context: Context) -> list[Message] | Reply:
        now = self._clock.now()
        batch = Batch(
            id=envelope.batch_id,
            sender=envelope.sender,
            origin=envelope.origin,
            received_at=now,
            size=intake.size,
            body=None,
            eight_bit=intake.eight_bit,
            connection_context=dict(context.connection),
            message_context=dict(context.message),
        )
        messages = []
        for recipient in envelope.recipients:
            number = self.ids.next(now)
            group, binding, domain = "default", "default", recipient.domain
            if self.policy.has(Phase.SET_BINDING):
                context.message["rcptto_localpart"] = recipient.local
                context.message["rcptto_domain"] = recipient.domain
                context.message["rcptto_string"] = f"RCPT TO:<{recipient}>"
                view = _view(envelope, intake, number, recipient)
                refusal = self.policy.run(Call(Phase.SET_BINDING, envelope.session, context, message=view))
                if refusal is not None:
                    return refusal
                chosen = self._chosen(view)
                if chosen is None:
                    return replies.NO_BINDING
                group, binding = chosen
                domain = view.routing_domain or domain
                if view.routing_domain and not is_domain(view.routing_domain):
                    self._log(Panic(now, f"scriptlet: {view.routing_domain!r} is no routing domain"))
                    return replies.NO_BINDING
            ours = envelope.origin.protocol == "internal"
            if binding == "default" and self.node.default_binding == "none" and not ours:
                return replies.NO_BINDING
            routing = self.config.routing(group, binding, domain)
            messages.append(Message(number, batch, recipient, group, binding, routing.domain, routing.via))
        return messages

    def _chosen(self, view: MessageView) -> tuple[str, str] | None:
        """Group and binding that policy chose; None, and a panic line, for one that does not exist.

        To send over the default binding instead could mean another TLS policy than the one asked for.
        """
        if view.binding:
            group = self.bindings.get(view.binding)
            if group is not None:
                return group, view.binding
        elif view.binding_group:
            members = self.config.group_members(view.binding_group)
            if members:
                return view.binding_group, self._unsuspended(view.binding_group, members)
        else:
            return "default", "default"
        name = view.binding or view.binding_group
        self._log(Panic(self._clock.now(), f"scriptlet: there is no binding or binding group {name!r}"))
        return None

    def _unsuspended(self, group: str, members: list[str]) -> str:
        active = [b for b in members if not self.config.delivery(group, b, "")[0].suspend_delivery]
        return random.choice(active or members)  # noqa: S311 - spreads mail over bindings


def _view(envelope: Envelope, intake: Intake, number: MessageId, recipient: Mailbox) -> MessageView:
    return MessageView(
        message_id=str(number),
        batch_id=str(envelope.batch_id),
        connection_id=str(envelope.origin.connection_id),
        sender=str(envelope.sender),
        recipient=str(recipient),
        head=intake.head,
        size=intake.size,
    )
