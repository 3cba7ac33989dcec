"""Messages into their queues: new ones, those of an earlier life, and all again under another configuration.

Whatever is sorted is placed first (`admission`): under the rules that hold now, or held where a demand is lost.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from quillon.delivery.connection import Connection
from quillon.mail import reply as replies
from quillon.mail.event import Panic
from quillon.mail.message import Message
from quillon.mail.outcome import PermanentFailure, Stage
from quillon.mail.reply import parse_reply
from quillon.net.slices import in_slices
from quillon.queue.destination import DestinationQueue, key_of
from quillon.queue.trail import Trail

if TYPE_CHECKING:
    from quillon.delivery.dispatcher import Dispatcher

Queue = DestinationQueue[Connection]


class Sorting:
    """That of one dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._at_work = 0  # who puts many messages into their queues, and will tell what has changed

    @property
    def busy(self) -> bool:
        """Whether many messages are being sorted, after which what has changed is told."""
        return self._at_work > 0

    async def recover(self, recovered: AsyncIterator[list[Message]]) -> None:
        self._at_work += 1
        try:
            async for piece in recovered:
                async for message in in_slices(piece):
                    self._recovered(message)
                self._dispatcher.kick()
        except Exception as error:
            # the database cannot be read any further: what is in memory goes on, and the rest is not forgotten
            words = f"spool: reading stopped: {error}; mail that was not read waits for the next start"
            self._dispatcher.log(Panic(self._now(), words))
        finally:
            self._at_work -= 1
            self._dispatcher.admission.tell(self._now())
        gc.freeze()  # what waits stays: the garbage collector need not walk through it

    def _recovered(self, message: Message) -> None:
        try:
            self.admit(message)
            self._dispatcher.admission.held(message)
        except Exception as error:
            # whatever a spool holds, the others of it go on
            text = f"delivery: message {message.id} of the spool cannot be queued: {error!r}"
            self._dispatcher.log(Panic(self._now(), text))

    def _outdated(self) -> Iterator[Message | None]:
        """The messages of destinations that a configuration before has ruled; None between two of them."""
        for queue in self._dispatcher.queues:
            self._dispatcher.dismiss_idle(queue)
            if queue.epoch != self._dispatcher.queues.epoch:
                yield from self.renew(queue)
                self._dispatcher.queues.touch(queue, self._now())
            yield None
        self._dispatcher.kick()

    def renew(self, queue: Queue) -> list[Message]:
        """Give a destination the settings of the configuration that runs now. Its messages are taken out, for
        `_sort`."""
        self._dispatcher.queues.renew(queue)
        return queue.drain_all()

    def _sort_one(self, message: Message) -> None:
        """Put a message into the queue that is its own now. One that cannot be stays in the spool, and is named."""
        try:
            self._dispatcher.admission.place(message)
            self._dispatcher.admission.held(message)
            self._dispatcher.queues.submit(message, self._now())
        except Exception as error:
            self._dispatcher.log(Panic(self._now(), f"delivery: message {message.id} cannot be queued: {error!r}"))

    async def sort(self, messages: list[Message]) -> None:
        async for message in in_slices(messages):
            self._sort_one(message)
        self._dispatcher.kick()

    def admit(self, message: Message) -> None:
        """Put a message into its queue, or settle at once what needs no attempt: a policy has refused it, or the
        configuration has mail of its domain vanish."""
        self._dispatcher.admission.place(message)
        if message.refused:
            try:
                refusal = parse_reply(message.refused)
            except ValueError:  # what stands in a spool ends no server
                refusal = replies.REFUSED
            self._dispatcher.settlement.settle(message, PermanentFailure(refusal, Stage.IDLE))
        elif self._dispatcher.config.outbound.for_message(message).blackhole == "internal":
            self._dispatcher.settlement.settle(message, PermanentFailure(replies.BLACKHOLED, Stage.NOT_CONNECTED))
        else:
            queue = self._dispatcher.queues.submit(message, self._now())
            if queue.far:
                self._dispatcher.resident_bodies.release(message.batch)  # room for those that leave soon

    def requeue(self, message: Message) -> None:
        """A message waits for its next attempt, under the rules that hold now."""
        self._dispatcher.admission.place(message)
        self._dispatcher.queues.submit(message, self._now())
        self._dispatcher.kick()

    def put_back(self, messages: list[Message], trail: Trail | None = None, *, same_rules: bool = False) -> None:
        """Put messages that were taken, and not tried or not at every host, back into the queues that are theirs now.
        With `same_rules` what has been found out about them holds still: no policy is asked again for another host."""
        now = self._now()
        for message in () if same_rules else messages:
            self._dispatcher.admission.place(message)
        for key in dict.fromkeys(key_of(message) for message in messages):
            queue = self._dispatcher.queues[key]
            queue.put_back([message for message in messages if key_of(message) == key], trail)
            self._dispatcher.queues.touch(queue, now)
        self._dispatcher.kick()

    def delay_domain(self, domain: str, note: str) -> int:
        """Put the waiting messages of a domain off until their next retry (manual, mail_queue_delay_domain)."""
        settings, _ = self._dispatcher.config.outbound.delivery("default", "default", domain)
        now = self._now()
        count = 0
        for queue in self._dispatcher.queues.of_domain(domain):
            for message in queue.drain():
                message.next_at, message.last_reply = now + settings.retry_interval, note
                queue.delay(message)
                self._dispatcher.store.update(message)
                count += 1
            self._dispatcher.queues.touch(queue, now)
        self._dispatcher.kick()
        return count

    async def sort_outdated(self) -> Counter[str]:
        """Sort what a configuration before has ruled, in slices. Gives how many messages wait for a demand that is
        lost, or go with less, by words."""
        self._at_work += 1
        try:
            async for message in in_slices(self._outdated()):
                if message is not None:
                    self._sort_one(message)
        finally:
            self._at_work -= 1
        return self._dispatcher.admission.tell(self._now())

    def _now(self) -> float:
        return self._dispatcher.services.clock.now()
