"""Notifications to senders, of messages that failed for good and of those that are late: whether one is due, to whom,
and by way of reception. Shell.

Recipients of one message that fail together are told of in one notification. A message with a null reverse-path
produces none, or one to mdn_failures_notify (manual, bounces). A failed message is let go only after its notification
is committed; what waits here for others is in the spool all the while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import NamedTuple

from quillon.config.model import Config
from quillon.config.settings import DeliverySettings
from quillon.delivery import dsn, override
from quillon.delivery.dsn import DsnFacts, DsnRecipient
from quillon.mail import header
from quillon.mail.address import NULL_PATH, Mailbox
from quillon.mail.message import Batch, IdSource, Message
from quillon.mail.outcome import PermanentFailure, TransientFailure
from quillon.net.clock import Clock
from quillon.policy.hook import NO_POLICY, Policy
from quillon.reception.accept import Envelope, Reception
from quillon.reception.mail_data import MailData
from quillon.spool.store import Store

_HEADER_LIMIT = 65536
GATHER = 2.0  # seconds that a notification waits for other recipients of its message

Done = Callable[[bool], None]


class _Whom(NamedTuple):
    """What has to be the same for recipients to share a notification. `until` is empty where they have failed."""

    batch: int
    recipient: Mailbox
    daemon: Mailbox
    original: str
    words: str
    until: str


@dataclass
class _Gathered:
    """Recipients of one notification, and who is told once it is stored."""

    batch: Batch
    entries: list[DsnRecipient] = field(default_factory=list)
    waiting: list[Done] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Bouncer:
    """`done(True)` once nothing more is owed for a message, `done(False)` if the notification could not be stored."""

    def __init__(
        self, config: Config, reception: Reception, store: Store, ids: IdSource, clock: Clock, hostname: str
    ) -> None:
        self.config = config
        self._reception = reception
        self._store = store
        self._ids = ids
        self._clock = clock
        self._hostname = hostname
        self._gathered: dict[_Whom, _Gathered] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def failed(
        self, message: Message, outcome: PermanentFailure, done: Done, policy: Policy = NO_POLICY, last: str = ""
    ) -> None:
        """Tell the sender, unless configuration or policy says not to. `last` is what the last attempt ended with."""
        settings = self.config.outbound.for_message(message)
        recipient = self._recipient(message, settings)
        if not settings.generate_bounces or recipient is None or not override.bounces(message, outcome.reply, policy):
            done(True)
            return
        words = override.bounce_text(message, outcome.reply, dsn.FAILED, policy)
        status = dsn.status_of(outcome.reply.enhanced, "5")
        entry = DsnRecipient(
            str(message.recipient), status, _said(outcome), outcome.remote_ip, last, _tls(message, outcome)
        )
        self._gather(self._whom(message, settings, recipient, words, ""), message.batch, entry, done)

    def late(self, message: Message, outcome: TransientFailure) -> None:
        """Tell the sender that a message is not delivered yet (manual, delay_dsn); one that cannot be stored is
        left."""
        settings = self.config.outbound.for_message(message)
        if message.batch.sender.null or message.batch.origin.protocol == "internal":
            return
        until = formatdate(message.batch.received_at + settings.message_expiration, localtime=True)
        status = dsn.status_of(outcome.reply.enhanced, "4")
        entry = DsnRecipient(
            str(message.recipient), status, _said(outcome), outcome.remote_ip, "", _tls(message, outcome)
        )
        whom = self._whom(message, settings, message.batch.sender, dsn.DELAYED, until)
        self._gather(whom, message.batch, entry, lambda _: None)

    def _recipient(self, message: Message, settings: DeliverySettings) -> Mailbox | None:
        """Who is told of a failure, if anybody is."""
        if message.batch.origin.protocol == "internal":
            return None
        return settings.mdn_failures_notify if message.batch.sender.null else message.batch.sender

    def _whom(self, message: Message, settings: DeliverySettings, recipient: Mailbox, words: str, until: str) -> _Whom:
        daemon = settings.mailerdaemon or Mailbox("mailer-daemon", self._hostname)
        original = settings.bounces_inline_original
        if original == "all" and message.batch.tls_request == "requiretls":
            original = "headers"  # the notification may go where the message must not (RFC 8689 5)
        return _Whom(message.batch.id.number, recipient, daemon, original, words, until)

    def _gather(self, whom: _Whom, batch: Batch, entry: DsnRecipient, done: Done) -> None:
        """Wait for other recipients of the message, unless there is none whose fate is open."""
        found = self._gathered.get(whom)
        if found is None:
            found = self._gathered[whom] = _Gathered(batch)
        found.entries.append(entry)
        found.waiting.append(done)
        if len(found.entries) >= batch.left:
            self._write_soon(whom)
        elif found.timer is None:
            found.timer = asyncio.get_running_loop().call_later(GATHER, self._write_soon, whom)

    def _write_soon(self, whom: _Whom) -> None:
        found = self._gathered.pop(whom)
        if found.timer is not None:
            found.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._write(whom, found))
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "notification", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _write(self, whom: _Whom, found: _Gathered) -> None:
        """Write a notification. Whatever goes wrong, who waits for it is told, and tries again."""
        stored = False
        try:
            stored = await self._accept(whom, found)
        finally:
            for done in found.waiting:
                done(stored)

    async def _accept(self, whom: _Whom, found: _Gathered) -> bool:
        now = self._clock.now()
        number = self._ids.next(now)
        notice = DsnFacts(
            hostname=self._hostname,
            sender=str(whom.daemon),
            recipient=str(whom.recipient),
            boundary=f"==quillon-{number.number:x}==",
            message_id=str(number).replace("/", ".").replace("-", "."),
            date=formatdate(now, localtime=True),
            arrival_date=formatdate(found.batch.received_at, localtime=True),
            original=whom.original,
            words=whom.words,
            until=whom.until,
        )
        text = dsn.render(notice, found.entries, await self._original(found.batch, whom.original))
        envelope = Envelope.internal(number, NULL_PATH, [whom.recipient])
        mail_data = MailData(self._store, number.number, len(text), lambda _: b"", 0)
        mail_data.add(text)

        return (await self._reception.accept(envelope, mail_data)).positive

    async def _original(self, batch: Batch, wanted: str) -> bytes:
        """The original or its header section, as far as it can be read."""
        if wanted == "none":
            return b""
        data = batch.body
        if data is None:
            data = await self._store.body_or_nothing(batch, 0 if wanted == "all" else _HEADER_LIMIT)
        return data if wanted == "all" else header.section(data)[:_HEADER_LIMIT]


def _said(outcome: PermanentFailure | TransientFailure) -> str:
    return f"{outcome.reply} ({outcome.cause})" if outcome.cause else str(outcome.reply)


def _tls(message: Message, outcome: PermanentFailure | TransientFailure) -> str:
    """Words on the TLS that was demanded of a delivery that failed for it."""
    if not outcome.cause or message.demand is None:
        return ""
    return f"The delivery was to be protected by TLS, by these settings: {message.demand}."
