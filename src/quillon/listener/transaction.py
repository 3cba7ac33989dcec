"""One mail transaction of a session: sender, recipients, mail data, and what policy says to each. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from quillon.config.scope import IPAddress
from quillon.config.settings import ReceptionSettings
from quillon.listener import relay
from quillon.listener.recorder import SessionRecord
from quillon.listener.services import SessionServices
from quillon.listener.session_tls import SessionTls
from quillon.log.trace import SessionTrace
from quillon.mail import reply as replies
from quillon.mail.address import NULL_PATH, Mailbox, parse_mailbox
from quillon.mail.message import MessageId, Origin
from quillon.mail.reply import Reply
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, Phase, Recipients, Session, Unanswered
from quillon.policy.message import MessageView
from quillon.reception import content
from quillon.reception.accept import Envelope
from quillon.reception.content import Trace
from quillon.reception.mail_data import MailData
from quillon.smtp.events import Data, RcptTo

_LIST = (Phase.RCPTTO_LIST, Phase.RCPTTO_LIST_FINAL)


class Transaction:
    """From MAIL FROM to the answer to the data; used again for the next one. `settings` may change between two."""

    def __init__(
        self,
        services: SessionServices,
        settings: ReceptionSettings,
        info: Session,
        number: MessageId,
        context: Context,
        security: SessionTls,
    ) -> None:
        self.settings = settings
        self.committing = False
        self.record: SessionRecord | None = None
        self.trace: SessionTrace | None = None
        self._services = services
        self._info = info
        self._number = number
        self._context = context
        self._security = security
        self._sender = NULL_PATH
        self._requiretls = False
        self._batch_id = number
        self._mail_data: MailData | None = None
        self._deciding = False
        self._date = ""

    @property
    def busy(self) -> bool:
        """Whether mail data are coming in, or wait for their commit."""
        return self._mail_data is not None or self._deciding or self.committing

    def begin(self, sender: Mailbox, *, requiretls: bool = False) -> None:
        """MAIL FROM has been accepted."""
        self._sender = sender
        self._requiretls = requiretls
        self._info.recipients = Recipients()
        self._batch_id = self._services.ids.next(self._services.clock.now())

    def abandon(self) -> None:
        """The client has gone, or has become another one."""
        if self._mail_data is not None:
            self._mail_data.discard()
        self.forget()

    def forget(self) -> None:
        """The transaction is over."""
        self._mail_data = None
        self._date = ""
        self._deciding = self.committing = False
        self._info.recipients = Recipients()
        self._sender = NULL_PATH
        self._requiretls = False

    # recipients -----------------------------------------------------------------------------------------------

    @property
    def asks_about_recipients(self) -> bool:
        """Whether policy has something to say to a recipient."""
        policy = self._services.policy
        return policy.has(Phase.RCPTTO) or bool(policy.hooks(Hook.RELAY_TO) or policy.hooks(Hook.DOMAIN_RELAY))

    def recipient(self, event: RcptTo, client: IPAddress) -> Reply | None:
        """Take a recipient, or say why not, where policy has nothing to say."""
        may = relay.client_may(self.settings, client, self._context.connection)
        refusal = self._relayed(event, may, None)
        if refusal is None:
            self._info.recipients.append(event.mailbox)
        return refusal

    def _relayed(self, event: RcptTo, may: bool, said: bool | None) -> Reply | None:
        if event.postmaster:
            return None
        return relay.refusal(self._services.config, self.settings, may, self._sender, event.mailbox, said)

    async def recipient_by_policy(self, event: RcptTo, client: IPAddress) -> Reply | None:
        """Take a recipient, or say why not."""
        context, policy = self._context, self._services.policy
        may = relay.client_may(self.settings, client, context.connection)
        try:
            asks = not event.postmaster and relay.depends(self.settings, may, self._sender)
            said = await self._relays_to(event.mailbox.domain) if asks else None
            refusal = self._relayed(event, may, said)
        except Unanswered:
            refusal = replies.POLICY_FAILED
        if refusal is None and policy.has(Phase.RCPTTO):
            view = self._view(event.mailbox)
            refusal = await policy.run(Call(Phase.RCPTTO, self._info, context, event.line, view))
            if refusal is None and view.sender != str(self._sender):
                self._sender = parse_mailbox(view.sender, pedantic=False) if view.sender else NULL_PATH
            if refusal is None and view.routing_domain:
                self._info.recipients.routes[event.mailbox] = view.routing_domain
        if refusal is None:
            self._info.recipients.append(event.mailbox)
        return refusal

    async def _relays_to(self, domain: str) -> bool | None:
        """What policy says on relaying to a domain (manual, pre_ec_can_relay_to); None: as configured.

        Raises Unanswered.
        """
        policy = self._services.policy
        for hook in (Hook.RELAY_TO, Hook.DOMAIN_RELAY):
            if policy.hooks(hook):
                said = await policy.asked(hook, Call(hook, self._info, self._context), domain)
                if isinstance(said, bool):
                    return said
                if said is not None:
                    policy.report(f"policy: {hook.value} returned {said!r}, not true, false or nil")
                    raise Unanswered
        return None

    @property
    def asks_about_list(self) -> bool:
        """Whether policy has something to say to the list of recipients."""
        return any(map(self._services.policy.has, _LIST))

    def list_complete(self) -> Reply | None:
        """DATA: the list of recipients is complete."""
        return None if self._info.recipients else replies.NO_VALID_RECIPIENTS

    async def list_complete_by_policy(self) -> Reply | None:
        """As `list_complete`, by what policy says (manual, validate_rcptto_list)."""
        policy, context = self._services.policy, self._context
        for phase in _LIST:
            if policy.has(phase):
                refusal = await policy.run(Call(phase, self._info, context))
                if refusal is not None:
                    return refusal
        return self.list_complete()

    def _view(self, mailbox: Mailbox) -> MessageView:
        return MessageView("", str(self._batch_id), str(self._number), str(self._sender), str(mailbox))

    # mail data ------------------------------------------------------------------------------------------------

    def add(self, data: bytes) -> None:
        """Take a piece of mail data."""
        if self._mail_data is None:
            limit = content.line_limit(self.settings)
            threshold = self._services.reception.node.large_message_threshold
            store = self._services.reception.store
            self._mail_data = MailData(store, self._batch_id.number, threshold, self._prefix, limit)
        self._mail_data.add(data)
        if self.record is not None:
            self.record.data(data)

    def complete(
        self, event: Data, remote: tuple[str, int], answer: Callable[[Reply], object]
    ) -> Coroutine[Any, Any, None] | None:
        """The last piece: hand the message to the reception, which answers. Gives what has to wait for policy."""
        self.add(event.data)
        mail_data = self._mail_data
        assert mail_data is not None
        if self.record is not None:
            self.record.data_complete(mail_data.size)
        if self.trace is not None:
            self.trace.note(f"< {mail_data.size} octets of mail data")
        if event.fault is not None:
            mail_data.discard()
            self.forget()
            answer(event.fault)
            return None
        pathway = self._context.connection.get("pathway", self.settings.pathway)
        group = self._services.config.inbound.pathway_group(pathway)
        origin = Origin(remote[0], "esmtp", self._number, pathway, group)
        servers = self.settings.authserv_ids or (self.settings.received_hostname or self._services.hostname,)
        info = self._info
        envelope = Envelope(
            self._batch_id,
            self._sender,
            info.recipients,
            origin,
            info,
            self._security.facts,
            servers,
            self._missing,
            requiretls=self._requiretls,
        )
        self._mail_data = None  # reception has it from here on
        self._deciding = True

        def answered(reply: Reply) -> None:
            self.forget()
            answer(reply)

        def decided() -> None:
            self._deciding, self.committing = False, True

        services = self._services
        task = services.reception.take(
            envelope, mail_data, self.settings, self._context, answered, services.policy, decided
        )
        return self._decided(task) if task is not None else None

    async def _decided(self, task: asyncio.Task[None]) -> None:
        """Until policy has decided; it may still be broken off."""
        try:
            await asyncio.shield(task)
        except BaseException:
            if not self.committing:
                task.cancel()
            raise

    def _prefix(self, head: bytes) -> bytes:
        trace = self._trace()
        received = content.trace_field(self.settings, trace, self._received_text)
        return received + content.missing_fields(head, self.settings, trace)

    def _missing(self, head: bytes) -> bytes:
        return content.missing_fields(head, self.settings, self._trace())

    def _received_text(self, field: bytes) -> bytes:
        """The Received field, as policy wants it (hook get_received_header_text)."""
        policy = self._services.policy
        if not policy.hooks(Hook.RECEIVED_TEXT):
            return field
        call = Call(Hook.RECEIVED_TEXT, self._info, self._context)
        said = policy.answers(Hook.RECEIVED_TEXT, call, field.decode("ascii"))
        return content.as_received(str(said), field) if said else field

    def _trace(self) -> Trace:
        self._date = self._date or self._services.date()  # one date a transaction: a signature may cover it
        connection = self._context.connection
        tls = ""
        found = self._security.facts
        if found is not None and found.protocol:
            shown = {True: "yes", False: "no", None: "none"}[found.verified]
            facts = f"{found.protocol} {found.cipher} bits={found.bits}"
            tls = f"{facts} client-certificate-verified={shown}"
        verb = connection.get("ehlo_string", "")[:4].upper()
        authenticated = "A" if connection.get("auth_status") == "pass" else ""
        protocol = "SMTP" if verb == "HELO" else f"ESMTP{'S' if tls else ''}{authenticated}"
        ip, _, port = self._info.remote.rpartition(":")
        return Trace(
            client_ip=ip.strip("[]"),
            client_port=int(port or 0),
            helo=connection.get("ehlo_domain", ""),
            hostname=self.settings.received_hostname or self._services.hostname,
            sender=str(self._sender),
            protocol=protocol,
            tls=tls,
            message_id=str(self._batch_id),
            date=self._date,
        )
