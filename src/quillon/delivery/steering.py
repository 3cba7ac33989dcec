"""What an operator orders of mail that waits: send it now, later or elsewhere, fail it, or hold it.

Messages that are being delivered when an order comes are left to their delivery. Whatever is looked through is looked
through in slices, so that an order about a million messages holds nothing up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from quillon.delivery.dispatcher import Dispatcher, Queue
from quillon.mail.event import Panic
from quillon.mail.message import Message
from quillon.mail.outcome import PermanentFailure, Stage
from quillon.mail.reply import Reply
from quillon.net.turns import in_slices
from quillon.queue.selection import Selection
from quillon.queue.suspension import Suspensions


class Waiting(NamedTuple):
    """A message and the queue that it waits in."""

    queue: Queue
    message: Message


Choose = Callable[[Message], tuple[str, str]]
"""The group and binding that a message is to leave from."""


class Steering:
    """Orders to one dispatcher. Each gives how many messages it concerned."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def find(self, selection: Selection) -> AsyncIterator[Waiting]:
        """What waits and is meant."""
        now = self._now()
        async for queue, message in in_slices(self._pairs(selection)):
            if message is not None and selection.matches(message, now):
                yield Waiting(queue, message)

    def _pairs(self, selection: Selection) -> Iterator[tuple[Queue, Message | None]]:
        """Each destination by itself, so that many small ones take their turns too, and with each of its messages."""
        for queue in self._dispatcher.queues:
            yield queue, None
            if selection.concerns(queue.key):
                for message in list(queue.messages()):
                    yield queue, message

    async def count(self, selection: Selection) -> int:
        """How many messages are meant."""
        return len([found async for found in self.find(selection)])

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
            active = message.next_at <= self._now()
            if active:
                message.next_at = self._now() + seconds
                self._dispatcher.store.update(message)
            self._place(message)
            return active

        return await self._each(selection, put_off)

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
        routing = self._dispatcher.config.outbound.routing(*source, message.wanted_domain)
        message.routing_domain, message.via = routing.domain, routing.via
        moved = (*source, message.destination) != before
        if moved:
            self._dispatcher.store.update(message)
        self._place(message)
        return moved

    async def _each(self, selection: Selection, act: Callable[[Message], bool]) -> int:
        """Take what is meant out of its queues, a queue at a time, and do something with each."""
        done = 0
        found: dict[Queue, set[int]] = {}
        async for queue, message in self.find(selection):
            found.setdefault(queue, set()).add(message.id.number)
        for queue, numbers in found.items():
            taken = queue.withdraw(numbers)
            self._dispatcher.queues.touch(queue, self._now())
            async for message in in_slices(taken):
                try:
                    done += act(message)
                except Exception as error:
                    # the order has failed for this one, which waits as before
                    text = f"console: message {message.id}: unexpected {error!r}"
                    self._dispatcher.log(Panic(self._now(), text))
                    self._dispatcher.queues.submit(message, self._now())
        self._dispatcher.kick()
        return done

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
