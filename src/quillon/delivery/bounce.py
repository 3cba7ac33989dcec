"""Notifications of permanent failures: whether one is due, to whom, and through the door of reception. Shell.

A message with a null reverse-path produces none, or one to mdn_failures_notify (manual, bounces). A failed message is
let go only after its notification is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate

from quillon.config.model import Config
from quillon.delivery import ruling
from quillon.delivery.dsn import WORDS, Notice, failure_notice
from quillon.mail import header
from quillon.mail.address import NULL_PATH, Mailbox
from quillon.mail.message import NULL_ID, IdSource, Message, Origin
from quillon.mail.outcome import PermanentFailure
from quillon.mail.reply import Reply
from quillon.net.clock import Clock
from quillon.policy.context import Context
from quillon.policy.hook import NO_POLICY, Policy, Session
from quillon.reception.door import Door, Envelope
from quillon.reception.intake import Intake
from quillon.spool.store import Store

_HEADER_LIMIT = 65536


class Bouncer:
    """`done(True)` once nothing more is owed for a message, `done(False)` if the notification could not be stored."""

    def __init__(self, config: Config, door: Door, store: Store, ids: IdSource, clock: Clock, hostname: str) -> None:
        self.config = config
        self._door = door
        self._store = store
        self._ids = ids
        self._clock = clock
        self._hostname = hostname
        self._waiting: set[asyncio.Task[None]] = set()

    def failed(
        self, message: Message, outcome: PermanentFailure, done: Callable[[bool], None], policy: Policy = NO_POLICY
    ) -> None:
        """Tell the sender, unless configuration or policy says not to."""
        settings = self.config.for_message(message)
        sender = message.batch.sender
        recipient = settings.mdn_failures_notify if sender.null else sender
        if not settings.generate_bounces or recipient is None or message.batch.origin.protocol == "internal":
            done(True)
            return
        if not ruling.bounces(message, outcome.reply, policy):
            done(True)
            return
        daemon = settings.mailerdaemon or Mailbox("mailer-daemon", self._hostname)
        self._write(message, outcome, recipient, daemon, settings.bounces_inline_original, done, policy)

    def _write(
        self,
        message: Message,
        outcome: PermanentFailure,
        recipient: Mailbox,
        daemon: Mailbox,
        original: str,
        done: Callable[[bool], None],
        policy: Policy,
    ) -> None:
        now = self._clock.now()
        number = self._ids.next(now)
        notice = Notice(
            hostname=self._hostname,
            sender=str(daemon),
            recipient=str(recipient),
            message_id=str(number).replace("/", ".").replace("-", "."),
            date=formatdate(now, localtime=True),
            arrival_date=formatdate(message.batch.received_at, localtime=True),
            original=original,
            words=ruling.bounce_text(message, outcome.reply, WORDS, policy),
        )
        text = failure_notice(notice, message, outcome, self._original(message, original))
        origin = Origin("127.0.0.1", "internal", NULL_ID)
        session = Session("", "", str(NULL_ID), "internal", recipients=[recipient])
        envelope = Envelope(number, NULL_PATH, origin, session, None)
        intake = Intake(self._store, number.number, len(text), lambda _: b"", 0)
        intake.add(text)

        def answered(reply: Reply) -> None:
            done(reply.positive)

        task = self._door.accept(envelope, intake, None, Context(), answered)
        if task is not None:  # a policy waits: nobody else holds it
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    def _original(self, message: Message, wanted: str) -> bytes:
        """The original or its header section, as far as it can be read."""
        if wanted == "none":
            return b""
        data = message.batch.body
        if data is None:
            data = self._store.read_body_now(message.batch)
        return data if wanted == "all" else header.section(data)[:_HEADER_LIMIT]
