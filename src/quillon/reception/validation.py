"""What policy makes of a message whose data have come: the phases from data to final validation.

Order: data and data_spool once; then for each recipient data_spool_each_rcpt on a copy of its own, set_binding, and
final validation. A recipient refused while others are accepted is not forgotten: it is stored with its refusal and
answered with a notification. A transient refusal of one makes the whole transaction transient (manual, policy).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quillon.config.model import Config
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox, is_domain, is_routing_name, parse_mailbox
from quillon.mail.message import MessageId
from quillon.mail.reply import Reply
from quillon.net.turns import Stint
from quillon.policy.context import Context, not_text
from quillon.policy.hook import VOID, Call, Hook, Phase, Policy, Session, Unanswered
from quillon.policy.message import Content, MessageView

BATCH_PHASES = (Phase.DATA, Phase.DATA_SPOOL)
MOST_RECIPIENTS = 10_000  # of one message, where callouts for one add another


class Copy:
    """One recipient's message as policy has left it. `refused` and `discarded` say why it will not be delivered,
    `own_context` that its context is not the batch's."""

    def __init__(
        self, number: MessageId, sender: Mailbox, recipient: Mailbox, content: Content, context: dict[str, str]
    ) -> None:
        self.number = number
        self.sender = sender
        self.recipient = recipient
        self.content = content
        self.context = context
        self.binding_group = self.binding = "default"
        self.routing_domain = ""
        self.priority = 0
        self.refused: Reply | None = None
        self.discarded: Reply | None = None
        self.own_context = False


class Decision:
    """`refusal` of the whole transaction, or `discarded` as a whole, or a copy for each recipient.

    `content` and `sender` are those of the batch, `refusals` are discards for the rejectlog.
    """

    def __init__(self, content: Content, sender: Mailbox) -> None:
        self.content = content
        self.sender = sender
        self.refusal: Reply | None = None
        self.discarded: Reply | None = None
        self.copies: list[Copy] = []


@dataclass
class Validation:
    """One message under one policy. `report` gets what an operator has to know, `next_id` gives message ids."""

    config: Config
    policy: Policy
    bindings: dict[str, str]
    default_refused: bool
    next_id: Callable[[], MessageId]
    report: Callable[[str], object]

    async def run(
        self,
        session: Session,
        context: Context,
        batch_id: MessageId,
        sender: Mailbox,
        content: Content,
        *,
        internal: bool,
    ) -> Decision:
        """All phases; `internal` for what Quillon writes itself, which no rule of reception concerns."""
        decision = Decision(content, sender)
        await self._decide(session, context, batch_id, decision, internal=internal)
        if self.policy.modules and decision.refusal is None:
            contexts = {id(c): c for c in (context.connection, context.message)}
            contexts |= {id(copy.context): copy.context for copy in decision.copies}
            fault = next(filter(None, map(not_text, contexts.values())), None)
            if fault is not None:
                self.report(f"policy: {fault}")
                decision.refusal = replies.POLICY_FAILED
        return decision

    async def _decide(
        self,
        session: Session,
        context: Context,
        batch_id: MessageId,
        decision: Decision,
        *,
        internal: bool,
    ) -> None:
        recipients = session.recipients
        if not internal:
            for phase in BATCH_PHASES:
                if not self.policy.has(phase):
                    continue
                view = _view(session, str(batch_id), str(batch_id), decision.sender, recipients[0], decision.content)
                view.may_edit = True
                decision.refusal = await self.policy.run(Call(phase, session, context, message=view))
                if decision.refusal is not None:
                    return
                decision.sender = _mailbox(view.sender)
                decision.discarded = view.discarded or decision.discarded
                if not recipients:
                    decision.refusal = replies.NO_VALID_RECIPIENTS
                    return
        if decision.discarded is not None:
            return
        copies: list[tuple[Mailbox, Copy]] = []
        todo, known = deque(dict.fromkeys(recipients)), set(recipients)  # named twice it is delivered once
        kept, edits = set(known), recipients.edits
        asks = self._asks()
        stint = Stint()
        while todo:
            if stint.over():
                await stint.pause()
            recipient = todo.popleft()
            if recipient not in kept:
                continue  # taken away by the callout of another one
            copy = await self._copy(session, context, batch_id, decision, recipient, asks=asks, internal=internal)
            if isinstance(copy, Reply):
                decision.refusal = copy
                return
            copies.append((recipient, copy))
            if recipients.edits != edits:
                kept, edits = set(recipients), recipients.edits
                if len(known) > MOST_RECIPIENTS:
                    self.report("policy: validate_data_spool_each_rcpt adds recipients without end")
                    decision.refusal = replies.POLICY_FAILED
                    return
                todo += [added for added in recipients if added not in known]
                known |= kept
        decision.copies += [copy for recipient, copy in copies if recipient in kept]
        decision.refusal = _whole_refusal(decision.copies) or (None if decision.copies else replies.NO_VALID_RECIPIENTS)

    async def _copy(
        self,
        session: Session,
        context: Context,
        batch_id: MessageId,
        decision: Decision,
        recipient: Mailbox,
        *,
        asks: bool,
        internal: bool,
    ) -> Copy | Reply:
        """A recipient's copy, or the refusal of the whole transaction; `asks` tells whether policy is asked about
        it."""
        copy = Copy(self.next_id(), decision.sender, recipient, decision.content, context.message)
        if not asks:
            fault = self._bind(copy, "", "", session.recipients.routes.get(recipient, ""), internal=internal)
            return fault or copy
        mine = Context(context.connection, dict(context.message))
        mine.message["rcptto_localpart"] = recipient.local
        mine.message["rcptto_domain"] = recipient.domain
        mine.message["rcptto_string"] = f"RCPT TO:<{recipient}>"
        view = _view(session, str(copy.number), str(batch_id), decision.sender, recipient, decision.content.copy())
        view.own_copy = True
        view.routing_domain = session.recipients.routes.get(recipient, "")
        each = (Phase.PRE_EACH_RCPT, *(() if internal else (Phase.EACH_RCPT,)), Phase.POST_EACH_RCPT)
        for phase in (*each, Phase.SET_BINDING, Phase.FINAL_VALIDATION, Phase.POST_FINAL_VALIDATION):
            if phase is Phase.FINAL_VALIDATION:
                fault = self._bind(copy, view.binding_group, view.binding, view.routing_domain, internal=internal)
                if fault is not None:
                    return fault
                view.binding_group, view.binding = copy.binding_group, copy.binding
            refusal = None
            if self.policy.has(phase):
                view.may_edit = phase is not Phase.SET_BINDING
                refusal = await self.policy.run(Call(phase, session, mine, message=view))
                context.disconnect, context.module = mine.disconnect, mine.module
            if refusal is None and view.discarded is not None:
                copy.discarded = view.discarded
                break
            if refusal is None and phase is Phase.SET_BINDING:
                refusal = self._ask(session, mine, view)
            if refusal is not None:
                if phase is Phase.SET_BINDING or refusal.transient:
                    return refusal
                copy.refused = refusal
                break
        copy.sender, copy.recipient = _mailbox(view.sender), _mailbox(view.recipient)
        copy.content, copy.context, copy.priority = view.content, mine.message, view.priority
        copy.own_context = True
        return copy

    def _asks(self) -> bool:
        phases = (Phase.EACH_RCPT, Phase.SET_BINDING, Phase.FINAL_VALIDATION, *VOID)
        hooks = (Hook.ROUTING_DOMAIN, Hook.CHOOSE_BINDING)
        return any(map(self.policy.has, phases)) or any(map(self.policy.hooks, hooks))

    def _ask(self, session: Session, context: Context, view: MessageView) -> Reply | None:
        """The questions behind set_binding: the routing domain, and which binding of a group; or that one failed."""
        try:
            if self.policy.hooks(Hook.ROUTING_DOMAIN):
                call = Call(Hook.ROUTING_DOMAIN, session, context, message=view)
                said = self.policy.decided(Hook.ROUTING_DOMAIN, call, "message")
                if said:
                    view.routing_domain = str(said).lower()
            if self.policy.hooks(Hook.CHOOSE_BINDING) and view.binding_group and not view.binding:
                call = Call(Hook.CHOOSE_BINDING, session, context, message=view)
                said = self.policy.decided(Hook.CHOOSE_BINDING, call, view.binding_group)
                if said:
                    view.binding = str(said)
        except Unanswered:
            return replies.POLICY_FAILED
        return None

    def _bind(self, copy: Copy, group: str, binding: str, domain: str, *, internal: bool) -> Reply | None:
        """Note what policy chose; the refusal for what does not exist.

        To send over the default binding instead could mean another TLS policy than the one asked for.
        """
        chosen = self._chosen(group, binding)
        if chosen is None:
            self.report(f"scriptlet: there is no binding or binding group {binding or group!r}")
            return replies.NO_BINDING
        copy.binding_group, copy.binding = chosen
        if copy.binding == "default" and self.default_refused and not internal:
            return replies.NO_BINDING
        if domain and not is_domain(domain) and not is_routing_name(domain):
            self.report(f"scriptlet: {domain!r} is no routing domain")
            return replies.NO_BINDING
        copy.routing_domain = domain
        return None

    def _chosen(self, group: str, binding: str) -> tuple[str, str] | None:
        if binding:
            owner = self.bindings.get(binding)
            return (owner, binding) if owner is not None else None
        if group:
            members = self.config.stanzas.group_members(group)
            return (group, self._unsuspended(group, members)) if members else None
        return "default", "default"

    def _unsuspended(self, group: str, members: list[str]) -> str:
        active = [b for b in members if not self.config.outbound.delivery(group, b, "")[0].suspend_delivery]
        return random.choice(active or members)  # noqa: S311 - spreads mail over bindings


def _whole_refusal(copies: Sequence[Copy]) -> Reply | None:
    """If every recipient was refused, the client is told so, and no notification is owed."""
    if copies and all(copy.refused is not None for copy in copies):
        return copies[0].refused
    return None


def _mailbox(address: str) -> Mailbox:
    """An address that was one before."""
    return parse_mailbox(address, pedantic=False) if address else Mailbox("", "")


def _view(
    session: Session, message_id: str, batch_id: str, sender: Mailbox, recipient: Mailbox, content: Content
) -> MessageView:
    return MessageView(
        message_id=message_id,
        batch_id=batch_id,
        connection_id=session.connection_id,
        sender=str(sender),
        recipient=str(recipient),
        content=content,
    )
