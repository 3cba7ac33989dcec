"""What becomes of a message after an attempt: the one place where that is decided, logged and written to the spool.

A message that failed for good is let go once the notification of it is stored. What is still to be tried goes back into
its queue, under the rules that hold now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quillon.config.model import Config
from quillon.delivery import override
from quillon.delivery.bounce import Bouncer
from quillon.delivery.tls_policy import would_wait
from quillon.mail.event import Attempted, Event, TlsFacts
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, TransientFailure
from quillon.net.clock import Clock
from quillon.policy.hook import Policy
from quillon.queue import retry
from quillon.reception.accept import ResidentBodies
from quillon.spool.store import Store

Prove = Callable[[Attempted, Callable[[], object]], object]


def at_once(_event: Attempted, then: Callable[[], object]) -> None:
    """Where no evidence is kept."""
    then()


RETRY_NOTICE = 60.0  # seconds until a notification that could not be stored is tried again


class Settlement:
    """`requeue` puts a message that waits into its queue; `log` takes events."""

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        store: Store,
        resident_bodies: ResidentBodies,
        bouncer: Bouncer,
        clock: Clock,
        requeue: Callable[[Message], object],
        log: Callable[[Event], object],
        prove: Prove = at_once,
    ) -> None:
        self._prove = prove
        self.config = config
        self.policy = policy
        self.stopping = False
        self._store = store
        self._resident_bodies = resident_bodies
        self._bouncer = bouncer
        self._clock = clock
        self._requeue = requeue
        self._log = log

    def settle(
        self,
        message: Message,
        outcome: Outcome,
        facts: TlsFacts | None = None,
        host: str = "",
        local_ip: str = "",
        reasons: tuple[str, ...] = (),
        *,
        quiet: bool = False,
    ) -> None:
        """An attempt has ended so; `facts`, `host`, `local_ip` and the `reasons` of its demand are of the connection
        that it ended on. With `quiet` the sender of what has failed is not told. What follows of it happens once there
        is evidence of it, where that is kept."""
        now, policy = self._clock.now(), self.policy
        demand = message.demand or override.demand_of(message, self.config)
        settled = retry.settle(
            message,
            outcome,
            now,
            lambda: override.retries(message, self.config.outbound.for_message(message), policy),
            lambda when: override.next_attempt(message, when, now, policy),
        )
        if isinstance(settled, retry.Fail):
            outcome = settled.outcome
        outcome = override.logged(message, outcome, now, policy)
        if isinstance(settled, retry.Delay):
            override.requeued(message, now, policy)
        source = local_ip or self._source(message)
        event = Attempted(
            now, message, outcome, demand, facts, host, source, reasons, self._would_wait(message, outcome, facts)
        )
        self._prove(event, lambda: self._follow(event, settled, quiet=quiet))

    def _follow(self, event: Attempted, settled: retry.Settled, *, quiet: bool) -> None:
        """What comes of an attempt: it is logged, and the message let go or tried again."""
        message, outcome = event.message, event.outcome
        self._log(event)
        if isinstance(settled, retry.Remove) or (quiet and isinstance(settled, retry.Fail)):
            self._removed(message)
        elif isinstance(settled, retry.Fail):
            self._notify(message, settled.outcome, settled.last)
        else:
            assert isinstance(outcome, TransientFailure), "only these are tried again"
            self._kept(message, outcome, event.time)
            self._requeue(message)

    def _would_wait(self, message: Message, outcome: Outcome, facts: TlsFacts | None) -> str:
        """What TLS_Enforce = report tells of a delivery."""
        if not isinstance(outcome, Delivered) or not self.config.outbound.any_reported:
            return ""
        group, binding = message.binding_group, message.binding
        wanted = self.config.outbound.reported(group, binding, message.destination, message.via)
        return would_wait(wanted, facts) if wanted is not None else ""

    def _source(self, message: Message) -> str:
        """The source address that the configuration wants for a message that no connection was there for."""
        group, binding = message.binding_group, message.binding
        address = self.config.outbound.delivery(group, binding, message.destination, message.via)[0].bind_address
        return "" if address == "*" else address

    def _kept(self, message: Message, outcome: TransientFailure, now: float) -> None:
        settings = self.config.outbound.for_message(message)
        due = retry.notices_due(settings, now - message.batch.received_at) if settings.generate_delay_dsn else 0
        if due > message.notices:
            message.notices = due
            self._bouncer.late(message, outcome)
        self._store.update(message)
        if message.tries >= settings.drop_body_after_trans_fail or self._resident_bodies.scarce:
            self._resident_bodies.release(message.batch)

    def _notify(self, message: Message, outcome: PermanentFailure, last: str) -> None:
        """Have the sender told, and let the message go once that is stored. A refused notice is tried again."""

        def told(done: bool) -> None:
            if done:
                self._removed(message)
            elif not self.stopping:
                asyncio.get_running_loop().call_later(RETRY_NOTICE, self._notify, message, outcome, last)

        self._bouncer.failed(message, outcome, told, self.policy, last)

    def _removed(self, message: Message) -> None:
        self._store.remove(message)
        if message.batch.left == 0:
            self._resident_bodies.release(message.batch)
