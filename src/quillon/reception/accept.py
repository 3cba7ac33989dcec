"""The reception: every message that Quillon takes responsibility for comes through `Reception.accept`.

Order: content rules, policy (see `validation`), spool commit, log, queue; then the reply. Nothing is acknowledged
before the commit has returned, and a message that cannot be stored is answered 451.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from quillon.config.model import Config
from quillon.config.settings import NodeSettings, ReceptionSettings
from quillon.evidence.record import digest_of
from quillon.evidence.writer import Evidence
from quillon.mail import header
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.event import Discarded, Event, Panic, Received, TlsFacts
from quillon.mail.message import NULL_ID, Batch, IdSource, Message, MessageId, Origin
from quillon.mail.reply import Reply
from quillon.net import eager
from quillon.net.clock import Clock
from quillon.net.slices import FEW, each, in_slices
from quillon.policy.context import Context
from quillon.policy.hook import Policy, Recipients, Session
from quillon.policy.message import Content
from quillon.reception import content
from quillon.reception.mail_data import MailData
from quillon.reception.validation import Copy, Decision, Validation
from quillon.spool.errors import is_full
from quillon.spool.room import Room
from quillon.spool.store import Store


class Envelope(NamedTuple):
    """One transaction as the client gave it, with the recipients that policy may change.

    The first of `authserv_ids` names us in Authentication-Results, and no field from outside may claim to be of any of
    them. `missing` gives the fields that a header section lacks and will be given. `requiretls` tells that the client
    has said REQUIRETLS.
    """

    batch_id: MessageId
    sender: Mailbox
    recipients: Recipients
    origin: Origin
    session: Session
    tls: TlsFacts | None = None
    authserv_ids: tuple[str, ...] = ()
    missing: Callable[[bytes], bytes] = lambda head: b""
    requiretls: bool = False

    @classmethod
    def internal(cls, batch_id: MessageId, sender: Mailbox, recipients: Iterable[Mailbox]) -> Envelope:
        """That of a message that Quillon or a policy writes itself."""
        session = Session("127.0.0.1:0", "127.0.0.1:0", str(NULL_ID), "internal")
        return cls(batch_id, sender, Recipients(recipients), Origin("127.0.0.1", "internal", NULL_ID), session)


class ResidentBodies:
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

    @property
    def scarce(self) -> bool:
        """Whether more than half of the places are taken: who waits long had better not have one."""
        return bool(self.limit) and self.count * 2 >= self.limit

    def release(self, batch: Batch) -> None:
        """A batch is done, or its body is not needed for now."""
        if batch.body is not None:
            batch.body = None
            self.count -= 1


_AT_ONCE = 200  # messages of one transaction that are put into their queues together
Answer = Callable[[Reply], object]
Stored = list[tuple[Batch, list[Message]]]


class _Storing:
    """Batches of one transaction on their way to the disk, and evidence of them. `done` is told when the last is there.

    A class and not functions within a function, which mypyc makes a cycle of: with the message in it, until the garbage
    collector comes.
    """

    def __init__(self, done: Callable[[_Storing], object], envelope: Envelope, batches: Stored, answer: Answer) -> None:
        self.envelope = envelope
        self.batches = batches
        self.answer = answer
        self.left = len(batches)
        self.failed: list[Batch] = []
        self.full = self.unproven = False
        self._done = done

    def over(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._done(self)

    def stored(self, batch: Batch, error: Exception | None) -> None:
        if error is not None:
            self.failed.append(batch)
            self.full = self.full or is_full(error)
        self.over()

    def not_proven(self) -> None:
        self.unproven = True
        self.over()


class Reception:
    """`enqueue` puts stored messages into their queues; `log` takes events."""

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        store: Store,
        room: Room,
        ids: IdSource,
        clock: Clock,
        resident_bodies: ResidentBodies,
        enqueue: Callable[[list[Message]], object],
        log: Callable[[Event], object],
        evidence: Evidence | None = None,
    ) -> None:
        self._evidence = evidence
        self.config = config
        self.policy = policy
        self.node: NodeSettings = config.node()
        self.bindings = config.outbound.bindings()
        self.ids = ids
        self.store = store
        self.room = room
        self.resident_bodies = resident_bodies
        self._clock = clock
        self._enqueue = enqueue
        self._log = log
        self._queueing: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: Config, policy: Policy) -> None:
        """Use another configuration for messages that come from now on."""
        self.config, self.policy, self.node, self.bindings = config, policy, config.node(), config.outbound.bindings()
        self.room.reconfigure(self.node.spool_minimum_free_space, self.node.spool_minimum_free_inodes)

    async def accept(self, envelope: Envelope, mail_data: MailData, settings: ReceptionSettings | None = None) -> Reply:
        """Take a message, or refuse it: the answer, after the commit where there is one. `settings` is None for what
        Quillon writes itself, which is under no rule of reception. Who cancels it may have got the message taken."""
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        await self._take(envelope, mail_data, settings, Context(), answer, self.policy, lambda: None)
        return await answered

    def take(
        self,
        envelope: Envelope,
        mail_data: MailData,
        settings: ReceptionSettings | None,
        context: Context,
        answer: Answer,
        policy: Policy,
        decided: Callable[[], object],
    ) -> asyncio.Task[None] | None:
        """As `accept`, for sessions: without a task for each message, and with a policy and a context of their own.

        `answer` is called once. Gives the task that does the rest where policy has to wait; who cancels it gets no
        answer, and no message has been taken then. `decided` is called when that is over: from there on the message is
        being stored, and nothing breaks it off.
        """
        return eager.start(self._take(envelope, mail_data, settings, context, answer, policy, decided))

    async def _take(
        self,
        envelope: Envelope,
        mail_data: MailData,
        settings: ReceptionSettings | None,
        context: Context,
        answer: Answer,
        policy: Policy,
        decided: Callable[[], object],
    ) -> None:
        try:
            found = await self._decide(envelope, mail_data, settings, context, policy)
        except BaseException:
            mail_data.discard()
            raise
        if isinstance(found, Reply):
            mail_data.discard()
            answer(found)
            return
        decided()
        self._store(envelope, found, answer)

    async def _decide(
        self,
        envelope: Envelope,
        mail_data: MailData,
        settings: ReceptionSettings | None,
        context: Context,
        policy: Policy,
    ) -> Stored | Reply:
        """What is to be stored, or the answer to a message of which nothing is."""
        mail_data.complete()
        refusal = self._fault(mail_data, settings)
        if refusal is not None:
            return refusal
        data = Content(mail_data.head, mail_data.received, mail_data.read, envelope.missing)
        if policy.modules and not header.has(mail_data.head, b"date"):
            context.message["rfc2822_date_missing"] = "true"
        validation = Validation(
            self.config,
            policy,
            self.bindings,
            self.node.default_binding == "none",
            lambda: self.ids.next(self._clock.now()),
            self._panic,
        )
        envelope.session.recipients = envelope.recipients
        decision = await validation.run(
            envelope.session, context, envelope.batch_id, envelope.sender, data, internal=settings is None
        )
        if decision.refusal is not None:
            return decision.refusal
        if decision.discarded is not None:
            self._discarded(envelope, context, decision.discarded)
            return Reply(250, "2.0.0", f"OK {envelope.batch_id}")
        for copy in decision.copies:
            if copy.discarded is not None:
                self._discarded(envelope, context, copy.discarded)
        kept = [copy for copy in decision.copies if copy.discarded is None]
        if settings is not None and not settings.generate_bounces_for_multi_recipient_policy_rejections:
            for copy in kept:
                if copy.refused is not None:
                    self._discarded(envelope, context, copy.refused)
            kept = [copy for copy in kept if copy.refused is None]
        if not kept:
            return Reply(250, "2.0.0", f"OK {envelope.batch_id}")
        return await self._batches(envelope, mail_data, context, decision, kept)

    def _fault(self, mail_data: MailData, settings: ReceptionSettings | None) -> Reply | None:
        """What is wrong with the mail data before policy sees them."""
        if mail_data.failed is not None:
            self._panic(f"spool: cannot write a body: {mail_data.failed.strerror}")
            return replies.NO_ROOM if is_full(mail_data.failed) else replies.SPOOL_FAILED
        if settings is None:
            return None
        if self.room.shortage():
            return replies.NO_ROOM
        if self._evidence is not None and self._evidence.failing:
            return replies.NO_EVIDENCE
        reply = replies.HEADERS_TOO_LARGE if mail_data.head_too_large else content.fault(mail_data.head, settings)
        if reply is None and mail_data.long_line:
            reply = replies.BODY_LINE_TOO_LONG
        return reply

    # batches --------------------------------------------------------------------------------------------------

    async def _batches(
        self, envelope: Envelope, mail_data: MailData, context: Context, decision: Decision, kept: list[Copy]
    ) -> Stored | Reply:
        """One batch for the copies that are as they came, one for each that policy has made another of."""
        own = next(iter(envelope.authserv_ids), "")
        added = content.authentication_results(own, context)
        request = content.tls_request(mail_data.head, requiretls=envelope.requiretls)
        proven = self._evidence is not None
        shared: list[Copy] = []
        apart: list[Copy] = []
        for copy in kept:
            unchanged = copy.content is decision.content or not copy.content.changed
            (shared if unchanged and copy.sender == decision.sender else apart).append(copy)
        out: Stored = []
        try:
            for copies in _alike(apart):
                first = copies[0]
                fit = content.without_results(first.content, envelope.authserv_ids)
                body, path, size = mail_data.copy(first.number.number, fit.rest, added + fit.in_front)
                batch = self._batch(envelope, first.number, first.sender, context, size, not fit.whole.isascii())
                batch.body, batch.path, batch.tls_request = body, path, request
                if proven:
                    batch.digest = await self._digest(fit.rest, body, path)
                out.append((batch, await self._messages(batch, copies)))
        except OSError as error:
            self._panic(f"spool: cannot write a body: {error.strerror}")
            self._drop(out)
            return replies.SPOOL_FAILED
        if not shared:
            mail_data.discard()
            return out
        fit = content.without_results(decision.content, envelope.authserv_ids)
        if fit.changed or added:
            mail_data.replace(fit.rest, added + fit.in_front)
        if mail_data.failed is not None:
            self._panic(f"spool: cannot write a body: {mail_data.failed.strerror}")
            self._drop(out)
            return replies.SPOOL_FAILED
        body, path = mail_data.finish()
        batch = self._batch(envelope, envelope.batch_id, decision.sender, context, mail_data.size, mail_data.eight_bit)
        batch.body, batch.path, batch.tls_request = body, path, request
        try:
            if proven:
                batch.digest = await self._digest(mail_data.head, body, path)
        except OSError as error:
            self._panic(f"spool: cannot read a body: {error.strerror}")
            self._drop([*out, (batch, [])])
            return replies.SPOOL_FAILED
        out.append((batch, await self._messages(batch, shared)))
        return out

    async def _digest(self, head: bytes, body: bytes | None, path: str) -> dict[str, object]:
        """What evidence says of mail data, which are in memory or in a file. Raises OSError."""
        if body is not None:
            return digest_of(body, hashlib.sha256(body).hexdigest())
        return digest_of(head, await asyncio.to_thread(_sha256, self.store.bodies.file(path)))

    def _batch(
        self, envelope: Envelope, number: MessageId, sender: Mailbox, context: Context, size: int, eight_bit: bool
    ) -> Batch:
        return Batch(
            id=number,
            sender=sender,
            origin=envelope.origin,
            received_at=self._clock.now(),
            size=size,
            body=None,
            eight_bit=eight_bit,
            connection_context=_spooled(context.connection),
            message_context=_spooled(context.message),
        )

    async def _messages(self, batch: Batch, copies: list[Copy]) -> list[Message]:
        if len(copies) <= FEW:
            return [self._message(batch, copy) for copy in copies]
        return await each(partial(self._message, batch), copies)

    def _message(self, batch: Batch, copy: Copy) -> Message:
        routing = self.config.outbound.way(copy.binding_group, copy.binding, copy.routing_domain, copy.recipient.domain)
        message = Message(
            copy.number, batch, copy.recipient, copy.binding_group, copy.binding, routing.domain, routing.via
        )
        message.routed = copy.routing_domain
        message.demand = self.config.outbound.demand(copy.binding_group, copy.binding, routing.domain, routing.via)
        message.priority = copy.priority
        message.refused = str(copy.refused) if copy.refused is not None else ""
        known = batch.message_context
        if copy.own_context:
            message.context = {k: v for k, v in copy.context.items() if k[:1] != "#" and known.get(k) != v}
        self._prune(batch, message)
        return message

    def _prune(self, batch: Batch, message: Message) -> None:
        """Leave out what exclude_vctx_conn and exclude_vctx_mess name; of a batch what any message excludes."""
        settings = self.config.outbound.for_message(message)
        if not settings.exclude_vctx_conn and not settings.exclude_vctx_mess:
            return
        for pattern in settings.exclude_vctx_conn:
            batch.connection_context = {k: v for k, v in batch.connection_context.items() if not pattern.search(k)}
        for pattern in settings.exclude_vctx_mess:
            batch.message_context = {k: v for k, v in batch.message_context.items() if not pattern.search(k)}
            message.context = {k: v for k, v in message.context.items() if not pattern.search(k)}

    def _drop(self, batches: Stored) -> None:
        for batch, _ in batches:
            if batch.path:
                self.store.bodies.drop(batch.path)

    # storing --------------------------------------------------------------------------------------------------

    def _store(self, envelope: Envelope, batches: Stored, answer: Answer) -> None:
        """Commit, all in one transaction of the spool, and answer when the last is on disk. Evidence of it is written
        at the same time: to wait for the one before the other begins would keep each client for two groups."""
        storing = _Storing(self._stored, envelope, batches, answer)
        evidence = self._evidence
        if evidence is not None:
            storing.left += 1
            evidence.prove_all(self._events(envelope, batches), storing.over, storing.not_proven)
        for batch, messages in batches:
            self.store.insert(batch, messages, partial(storing.stored, batch))

    def _events(self, envelope: Envelope, batches: Stored) -> list[Received]:
        now = self._clock.now()
        return [Received(now, message, envelope.tls) for _, messages in batches for message in messages]

    def _stored(self, storing: _Storing) -> None:
        envelope, batches, failed, unproven = storing.envelope, storing.batches, storing.failed, storing.unproven
        if not failed and not unproven:
            self._taken(envelope, batches, storing.answer)
            return
        self._undo(batches, failed)
        if self._evidence is not None and not unproven:
            self._evidence.undone(self._events(envelope, batches))
        refusal = (replies.NO_ROOM if storing.full else replies.SPOOL_FAILED) if failed else replies.NO_EVIDENCE
        storing.answer(refusal)

    def _undo(self, batches: Stored, failed: list[Batch]) -> None:
        """The client will come again with all of it: what did get onto disk must not be sent twice. `failed` are those
        that did not."""
        for batch, messages in batches:
            if batch in failed:
                if batch.path:
                    self.store.bodies.drop(batch.path)
                continue
            for message in messages:
                self.store.remove(message)

    def _taken(self, envelope: Envelope, batches: Stored, answer: Answer) -> None:
        """From here on the message is ours, whatever fails behind the commit, and the client has to know."""
        answer(Reply(250, "2.0.0", f"OK {envelope.batch_id}"))
        task = eager.start(self._queue(envelope, batches))
        if task is not None:  # very many recipients
            self._queueing.add(task)
            task.add_done_callback(self._queueing.discard)

    async def _queue(self, envelope: Envelope, batches: Stored) -> None:
        now = self._clock.now()
        for batch, messages in batches:
            self.resident_bodies.admit(batch)
            if len(messages) <= FEW:
                for message in messages:
                    self._log(Received(now, message, envelope.tls))
                self._enqueue(messages)
                continue
            part: list[Message] = []
            async for message in in_slices(messages):
                self._log(Received(now, message, envelope.tls))
                part.append(message)
                if len(part) >= _AT_ONCE:
                    self._enqueue(part)
                    part = []
            self._enqueue(part)

    # words ----------------------------------------------------------------------------------------------------

    def _panic(self, text: str) -> None:
        self._log(Panic(self._clock.now(), text))

    def _discarded(self, envelope: Envelope, context: Context, reply: Reply) -> None:
        self._log(
            Discarded(
                self._clock.now(),
                envelope.session.remote,
                envelope.session.local,
                envelope.origin,
                reply,
                context.module or "core",
                dict(context.connection),
                dict(context.message),
            )
        )


def _sha256(file: Path) -> str:
    """Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _alike(copies: list[Copy]) -> list[list[Copy]]:
    """Copies whose sender and content are the same, which share one body: a signature is the same for all of them."""
    groups: dict[tuple[Mailbox, bytes, int], list[Copy]] = {}
    for copy in copies:
        groups.setdefault((copy.sender, copy.content.head, id(copy.content.body)), []).append(copy)
    return list(groups.values())


def _spooled(context: Mapping[str, str]) -> dict[str, str]:
    """What goes into the spool: keys that begin with # are internal."""
    return {key: value for key, value in context.items() if key[:1] != "#"}
