"""Policy is asked what messages authenticate with, before anything else becomes of them.

A message is out of its queue while it is asked about, so many at once. What comes of it decides the queue where it
belongs.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from quillon.delivery import override
from quillon.delivery.connection import Connection, ConnectionServices
from quillon.mail.event import Panic
from quillon.mail.message import Message
from quillon.queue.destination import DestinationQueue, key_of

if TYPE_CHECKING:
    from quillon.delivery.dispatcher import Dispatcher

AT_ONCE = 100  # messages that are out of their queue while a policy is asked about them
PATIENCE = 60.0  # seconds that a policy may take for one of them

Queue = DestinationQueue[Connection]
Answer = asyncio.Task[override.Override | str | None]


class Inquiry:
    """The questions about messages of one dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._asking: set[Answer] = set()
        self._unasked: set[Queue] = set()  # destinations about whose messages policy is still to be asked

    def ask(self, queue: Queue) -> None:
        """Ask about the messages of a destination, or have it wait for others."""
        dispatcher = self._dispatcher
        while len(self._asking) < AT_ONCE:
            messages, _ = queue.take(AT_ONCE - len(self._asking), "")
            if not messages:
                break
            for message in messages:
                key, admission = key_of(message), dispatcher.admission
                known = (*admission.settings(key), dispatcher.services.hooks, admission.contract(key))
                asked = override.asked(message, *known)
                task = asyncio.get_running_loop().create_task(asyncio.wait_for(asked, PATIENCE))
                self._asking.add(task)
                task.add_done_callback(partial(self._asked, message, dispatcher.services))
        else:
            self._unasked.add(queue)
            until = dispatcher.services.clock.now() + PATIENCE
            queue.pause(until, "a policy is being asked about other messages")

    def cancel(self) -> None:
        """Another policy is to be asked, or none any more: the messages go back."""
        for task in self._asking:
            task.cancel()

    def _asked(self, message: Message, services: ConnectionServices, task: Answer) -> None:
        """Policy has said what a message authenticates with: put it into the queue where it belongs then."""
        dispatcher = self._dispatcher
        now = dispatcher.services.clock.now()
        self._asking.discard(task)
        for queue in self._unasked:
            queue.resume()
            dispatcher.queues.touch(queue, now)
        self._unasked.clear()
        if task.cancelled() or dispatcher.services is not services:  # a reload, or the end
            dispatcher.sorting.put_back([message])
            return
        error = task.exception()
        message.override = task.result() if error is None else f"unexpected {error!r}"
        if isinstance(error, TimeoutError):
            message.override = f"outbound_smtp_auth_config waited longer than {PATIENCE:.0f} s"
            dispatcher.log(Panic(now, f"policy: {message.override}"))
        elif error is not None:
            dispatcher.unexpected(error)
        dispatcher.queues.submit(message, now)
        dispatcher.kick()
