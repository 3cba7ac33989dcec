"""What an operator orders of mail that waits: send it now, later or elsewhere, fail it, or hold it.

Messages that are being delivered when an order comes are left to their delivery. Whatever is looked through is looked
through in slices, so that an order about a million messages holds nothing up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import NamedTuple

from quillon.delivery.dispatcher import Dispatcher, Queue
from quillon.mail.event import Panic
from quillon.mail.message import Message
from quillon.mail.outcome import PermanentFailure, Stage
from quillon.mail.reply import Reply
from quillon.net.slices import in_slices
from quillon.queue.selection import Selection
from quillon.queue.suspension import Suspensions


class Waiting(NamedTuple):
    """A message and the queue that it waits in."""

    queue: Queue
    message: Message


PIECE = 1000  # messages of a destination that are looked at together

Choose = Callable[[Message], tuple[str, str]]
"""The group and binding that a message is to leave from."""


class Steering:
    """Orders to one dispatcher. Each gives how many messages it concerned."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def find(self, selection: Selection) -> AsyncIterator[Waiting]:
        """What waits and is meant."""
        async for queue, messages in self._found(selection):
            for message in messages:
                yield Waiting(queue, message)

    async def _found(self, selection: Selection) -> AsyncIterator[tuple[Queue, list[Message]]]:
        """As `find`, a piece of a destination at a time."""
        wanted = selection.predicate(self._now())
        async for queue, piece in in_slices(self._pieces(selection)):
            found = [message for message in piece if wanted(message)]
            if found:
                yield queue, found

    def _pieces(self, selection: Selection) -> Iterator[tuple[Queue, list[Message]]]:
        """All messages that are to be looked at, so many of a destination at once."""
        for queue in self._dispatcher.queues:
            if selection.concerns(queue.key):
                waiting = queue.snapshot()
                while piece := list(islice(waiting, PIECE)):
                    yield queue, piece

    async def count(self, selection: Selection) -> int:
        """How many messages are meant."""
        count = 0
        async for _, messages in self._found(selection):
            count += len(messages)
        return count

    async def oldest(self) -> float:
        """When the oldest message that waits came; 0 for none."""
        found = [min(m.batch.received_at for m in messages) async for _, messages in self._found(Selection())]
        return min(found, default=0.0)

    # orders ---------------------------------------------------------------------------------------------------

    async def flush(self, selection: Selection) -> int:
        """Try messages now, whatever is known against their hosts. The spool keeps the time of their next attempt."""

        touched: dict[Queue, None] = {}

        def try_now(message: Message) -> bool:
            message.next_at = 0.0
            touched[self._place(message)] = None
            return True

        self._dispatcher.memory.forget_rests()
        done = await self._each(selection, try_now)
        async for queue in in_slices(touched):
            if self._dispatcher.halts.of(queue.key, self._now()) is None:
                queue.unsilence()
                self._dispatcher.queues.touch(queue, self._now())
        self._dispatcher.kick()
        return done

    async def delay(self, selection: Selection, seconds: float) -> int:
        """Put off what could leave now; what is delayed already stays as it is."""

        def put_off(message: Message) -> bool:
            message.next_at = self._now() + seconds
            self._dispatcher.store.update(message)
            self._place(message)
            return True

        now = self._now()
        return await self._each(selection, put_off, lambda message: message.next_at <= now)

    async def fail(self, selection: Selection, reply: Reply, *, quiet: bool = False) -> int:
        """Give messages up; with `quiet` their senders are not told."""
        outcome = PermanentFailure(reply, Stage.IDLE)

        def give_up(message: Message) -> bool:
            self._dispatcher.settlement.settle(message, outcome, quiet=quiet)
            return True

        return await self._each(selection, give_up)

    async def rebind(self, selection: Selection, choose: Choose) -> int:
        """Give messages the binding that `choose` says, and the gateway that the configuration names for it now. Counts
        those that go another way than before."""
        return await self._each(selection, lambda message: self._move(message, choose(message), message.routed))

    async def reroute(self, selection: Selection, domain: str) -> int:
        """Send messages to the hosts of another domain."""
        return await self._each(
            selection, lambda message: self._move(message, (message.binding_group, message.binding), domain)
        )

    def _move(self, message: Message, source: tuple[str, str], routed: str) -> bool:
        before = (message.binding_group, message.binding, message.destination)
        message.binding_group, message.binding = source
        message.routed = routed
        routing = self._dispatcher.config.outbound.way(*source, routed, message.recipient.domain)
        message.routing_domain, message.via = routing.domain, routing.via
        moved = (*source, message.destination) != before
        if moved:
            self._dispatcher.store.update(message)
        self._place(message)
        return moved

    async def _each(
        self,
        selection: Selection,
        act: Callable[[Message], bool],
        also: Callable[[Message], bool] = lambda _: True,
    ) -> int:
        """Take what is meant, and holds `also`, out of its queues, a queue at a time, and do something with each."""
        found: dict[Queue, set[int]] = {}
        async for queue, messages in self._found(selection):
            numbers = {message.id.number for message in messages if also(message)}
            if numbers:
                found.setdefault(queue, set()).update(numbers)
        done = 0
        async for message in in_slices(self._taken(found)):
            try:
                done += act(message)
            except Exception as error:
                # the order has failed for this one, which waits as before
                text = f"console: message {message.id}: unexpected {error!r}"
                self._dispatcher.log(Panic(self._now(), text))
                self._place(message)
        self._dispatcher.kick()
        return done

    def _taken(self, found: dict[Queue, set[int]]) -> Iterator[Message]:
        """Messages out of their queues, those of one at a time."""
        for queue, numbers in found.items():
            taken = queue.withdraw(numbers)
            self._dispatcher.queues.touch(queue, self._now())
            yield from taken

    # suspension -----------------------------------------------------------------------------------------------

    async def suspend(self, suspensions: Suspensions, domain: str) -> int:
        """Have what is suspended stop, and what is no longer go on; `domain` is that of what has changed. Gives how
        many messages wait for a halt to end."""
        self._dispatcher.halts.suspensions = suspensions
        self._dispatcher.admission.suspensions_changed()
        if domain:
            # those that a gateway takes along with others
            await self._each(Selection(domain=domain), lambda message: bool(self._place(message)))
        now = self._now()
        held = 0
        async for queue in in_slices(self._dispatcher.queues):
            halt = self._dispatcher.halts.of(queue.key, now)
            queue.unsilence()
            if halt is not None:
                queue.pause(halt.until, halt.why, messages=True)
                self._dispatcher.dismiss_idle(queue)
                held += queue.waiting + queue.delayed
            self._dispatcher.queues.touch(queue, now)
        self._dispatcher.kick()
        return held

    def _place(self, message: Message) -> Queue:
        """Into its queue, under the rules that hold now: a reload may have come while it was out of one."""
        self._dispatcher.admission.place(message)
        return self._dispatcher.queues.submit(message, self._now())

    def _now(self) -> float:
        return self._dispatcher.services.clock.now()
